"""Training examples on disk: the label schema, plus the photo's bytes; every target may be null.

A folder of examples holds `data/*.parquet` in row groups of `GROUP` rows, written in a shuffled order, so that
whoever reads a few row groups sees a bit of everything. Columns that say more than labels do:

- `image` (binary): the photo's JPEG or PNG bytes, not mirrored. Coordinates are the photo's pixels after EXIF rotation.
- `hand_mask` (binary): an 8-bit PNG of the photo's size, 255 where the hand itself is seen; null where nobody knows.
- `joints2d_px` may hold NaN pairs: joints that nobody annotated.
- `camera_matrix`: the data set's own K, as `camera.focal_px` (the mean of its two) and `camera.principal_px` say too;
  `wrist_mm`: the wrist before that camera.
- `guess3d_mm`: what a detector took the 3D joints for, wrist-relative, camera axes, of a hand of its usual size.
- `status` is `ok`, or `no_hand` where the box holds none: then nothing else is known.
- `reference_bone_mm`: the length that FreiHAND gives with every photo, also where it hides the joints.
- `source_index`: the example's place in its data set's own list, from 0; submissions are in that order.
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
from annotator.storage.files import join, write_whole

#: The status of an example that shows no hand; every other is `ok`.
NO_HAND = "no_hand"

#: Rows of a row group, the unit in which training reads.
GROUP = 32

#: Rows and photo bytes of a file, at most; it passes through memory whole.
FILE_ROWS, FILE_BYTES = 1024, 128 << 20


#: Beside `data/`: what was converted and what was left out; until then, `UNFINISHED`.
SUMMARY_FILE, UNFINISHED = "_convert.json", b'{"unfinished": true}\n'


def example_schema(vertex_count: int, facts: Mapping[str, Any]) -> pa.Schema:
    """The columns of an example file; `facts` (hand, source, ...) go into its metadata under `amvur`."""
    said = {
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
    schema = label_schema(vertex_count, said)
    return pa.schema([*schema, *(pa.field(*column) for column in own)], metadata=schema.metadata)


def example_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table of examples, one mapping a row with any of the schema's columns; what is absent is null.

    Values of array columns are NumPy arrays of the shape the schema says; `camera` is a mapping of its fields.
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
    """Write OUT/data/part-000000.parquet ...; returns the number of examples. Files are whole or absent."""
    count = 0
    for number, part in enumerate(_parts(rows)):
        sink = io.BytesIO()
        # Photos are compressed already; zstd still helps the numbers.
        pq.write_table(example_table(part, schema), sink, compression="zstd", row_group_size=GROUP)
        write_whole(join(out, "data", f"part-{number:06d}.parquet"), sink.getvalue())
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
