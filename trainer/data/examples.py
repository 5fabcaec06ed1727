"""Training examples on disk: the label schema, plus the photo's bytes; every target may be null.

A folder of examples holds `data/*.parquet` in row groups of `GROUP` rows. Rows are shuffled, so that a few row groups
are a sample of the whole. Columns beyond those of labels:

- `image` (binary): the photo's JPEG or PNG bytes, not mirrored. Coordinates are the photo's pixels after EXIF rotation.
- `hand_mask` (binary): an 8-bit PNG of the photo's size, 255 where the hand is visible; null if unknown.
- `joints2d_px` may hold NaN pairs: joints without annotation.
- `camera_matrix`: the data set's own K. `camera.focal_px` is the mean of its two focal lengths, `camera.principal_px`
  its principal point. `wrist_mm`: the wrist in the axes of that camera.
- `guess3d_mm`: a detector's 3D joints, wrist-relative, camera axes, at the size of its typical hand.
- `status` is `ok`, or `no_hand` if the box shows no hand: then nothing else is known.
- `reference_bone_mm`: the bone length that FreiHAND gives with every photo, even where it hides the joints.
- `source_index`: the example's index in its data set's own list, from 0; submissions use that order.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from annotator.labels.schema import SCHEMA_VERSION, label_schema, labels_to_table
from annotator.storage.files import join, read_if_exists, write_atomic

#: Status of an example without a hand; all others are `ok`.
NO_HAND = "no_hand"

#: Rows per row group, the unit of reading in training.
GROUP = 32

#: Maximum rows and photo bytes per file, which must fit into memory.
FILE_ROWS, FILE_BYTES = 1024, 128 << 20


#: File beside `data/` with the summary of the conversion; until the end it holds `UNFINISHED`.
SUMMARY_FILE, UNFINISHED = "_convert.json", b'{"unfinished": true}\n'


def is_converted(folder: str) -> bool:
    """Return whether a folder or URL holds a finished conversion."""
    return read_if_exists(join(folder, SUMMARY_FILE)) not in (None, UNFINISHED)


def example_schema(vertex_count: int, facts: Mapping[str, Any]) -> pa.Schema:
    """Return the schema of an example file; `facts` (hand, source, ...) go into its metadata under `amvur`."""
    metadata = {
        "amvur": json.dumps({"schema_version": SCHEMA_VERSION, "examples": True, **facts}, sort_keys=True)
    }
    xyz = pa.list_(pa.float32(), 3)
    own = [
        ("image", pa.binary()),
        ("hand_mask", pa.binary()),
        ("guess3d_mm", pa.list_(xyz, 21)),
        ("camera_matrix", pa.list_(xyz, 3)),
        ("wrist_mm", xyz),
        ("reference_bone_mm", pa.float32()),
        ("source_index", pa.int32()),
    ]
    schema = label_schema(vertex_count, metadata)
    return pa.schema([*schema, *(pa.field(*column) for column in own)], metadata=schema.metadata)


def example_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return a table of examples from one mapping per row, with any of the schema's columns; missing ones are null.

    Values of array columns are NumPy arrays of the shape in the schema; `camera` is a mapping of its fields.
    """
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if pa.types.is_fixed_size_list(field.type):
            there = [i for i, value in enumerate(values) if value is not None]
            part = labels_to_table(
                rows=[{}] * len(rows),
                hands={field.name: np.stack([rows[i][field.name] for i in there]) if there else None},
                hand_rows=there,
                schema=pa.schema([field]),
            )
            arrays.append(part.column(0).combine_chunks())
        else:
            arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def write_examples(out: str, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> int:
    """Write OUT/data/part-000000.parquet ..., each atomically, and return the number of examples."""
    count = 0
    for number, part in enumerate(_parts(rows)):
        sink = io.BytesIO()
        # Photos are already compressed; zstd helps the numbers.
        pq.write_table(example_table(part, schema), sink, compression="zstd", row_group_size=GROUP)
        write_atomic(join(out, "data", f"part-{number:06d}.parquet"), sink.getvalue())
        count += len(part)
    return count


def _parts(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row["image"])
        if len(part) == FILE_ROWS or (size >= FILE_BYTES and len(part) % GROUP == 0):
            yield part
            part, size = [], 0
    if part:
        yield part
