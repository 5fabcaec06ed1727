"""Tracked label sets on disk, made without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from annotator.commands.track import tracked_tables
from annotator.labels.folder import write_faces
from annotator.labels.schema import label_schema, write_tables
from annotator.sources.sequences import ADDED, SequenceSource
from tests.support.moving_labels import HAND


def write_tracked(labels: Path, out: Path, max_gap: int = 5) -> Path:
    """Track a label set as `amvur track` does, a file for each sequence."""
    source = SequenceSource(str(labels))
    about = {"amvur": json.dumps(source.facts)}
    schema = label_schema(HAND.vertex_count, about, source.columns | ADDED)
    (out / "data").mkdir(parents=True)
    write_faces(str(out), HAND.faces)
    for number, entry in enumerate(source):
        with (out / "data" / f"shard-{number:07d}.parquet").open("wb") as file:
            write_tables(file, tracked_tables([entry], str(labels), HAND, max_gap, schema), schema)
    return out


def rows_of(tracked: Path, name: str, track_id: int) -> list[dict]:
    """Rows of a track by frame."""
    rows = pq.read_table(tracked / "data").to_pylist()
    rows = [row for row in rows if row["image_uri"] == name and row["track_id"] == track_id]
    return sorted(rows, key=lambda row: row["frame_index"])
