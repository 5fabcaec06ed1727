"""Outcomes equal those of the label files, also if a run ends between a file and its line."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.job.manifest import DoneShards, shard_file_name
from annotator.job.tally import Tally, report_of
from annotator.labels.schema import label_schema


def write(labels, number: int, statuses: list[str]) -> list[dict]:
    rows = [
        {"image_uri": f"https://me:secret@x/{k}?sig=abc", "status": status, "hand_index": -1, "error": "e"}
        | ({"reason": "missing"} if status != "ok" else {})
        for k, status in enumerate(statuses)
    ]
    (labels / "data").mkdir(exist_ok=True)
    schema = label_schema(1)
    columns = [pa.array([row.get(name) for row in rows], schema.field(name).type) for name in schema.names]
    pq.write_table(pa.table(columns, schema=schema), labels / "data" / shard_file_name(number))
    return rows


def outcomes(labels) -> dict[str, int]:
    return dict(Tally(str(labels), DoneShards(str(labels))).outcomes)


def test_what_nobody_counted_is_read(tmp_path):
    write(tmp_path, 0, ["ok", "ok", "unreadable"])
    write(tmp_path, 1, ["failed"])
    assert outcomes(tmp_path) == {"ok": 2, "unreadable: missing": 1, "failed: missing": 1}
    # Once only: the files may go on to be anything.
    (tmp_path / "data" / shard_file_name(0)).write_bytes(b"")
    tally = Tally(str(tmp_path), DoneShards(str(tmp_path)))
    assert dict(tally.outcomes) == {"ok": 2, "unreadable: missing": 1, "failed: missing": 1}
    assert tally.failed == [["https://x/0", "e"]]


def test_a_shard_that_was_deleted_and_made_again_counts_as_it_is_now(tmp_path):
    write(tmp_path, 0, ["failed", "ok"])
    write(tmp_path, 1, ["ok"])
    assert outcomes(tmp_path) == {"failed: missing": 1, "ok": 2}
    (tmp_path / "data" / shard_file_name(0)).unlink()
    assert outcomes(tmp_path) == {"ok": 1}
    # The run that rewrote it was killed before it recorded the outcome.
    write(tmp_path, 0, ["ok", "ok"])
    assert outcomes(tmp_path) == {"ok": 3}


def test_rows_done_again_replace_what_was_counted(tmp_path):
    before = report_of(0, write(tmp_path, 0, ["failed", "ok"]))
    tally = Tally(str(tmp_path), DoneShards(str(tmp_path)), discard_record=True)
    tally.add(report_of(0, write(tmp_path, 0, ["ok", "ok"])), before)
    assert dict(tally.outcomes) == {"ok": 2} and tally.failed == []
    assert not (tmp_path / "_outcomes").exists()  # killed here, the files would be counted
    tally.write()
    lines = [line for path in (tmp_path / "_outcomes").iterdir() for line in path.read_text().splitlines()]
    assert json.loads(lines[-1])["outcomes"] == {"ok": 2}
    assert outcomes(tmp_path) == {"ok": 2}
