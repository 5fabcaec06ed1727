"""Labels, schema version 2: one row per hand, plain Arrow types, the same whoever reads them.

Fixed-size lists with plain element types, so that pandas, polars, DuckDB and Hugging Face `datasets` read the
files as they are. Big columns are rounded to a power of two of a millimetre and stored
byte-stream-split under zstd: equal high bytes then lie together. Colours are a dictionary of up to 256 values, so that
each is a byte (plain, Parquet gives it four; split bytes of whole numbers are what DuckDB before 2.0 can't read).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from annotator.photos.errors import Reason

#: 1 held 3D in the axes of each crop; 2 holds it in camera axes (`annotator.coordinates`), with the principal point.
SCHEMA_VERSION = 2

STATUSES = ("ok", "no_hand", "unreadable", "failed")

#: Closed list of `reason`: null for ok, else why there is no hand in this row.
REASONS = (
    *get_args(Reason),
    *("bad_row", "no_hand_found", "not_listed", "too_few_joints", "crashed", "internal_error"),
)

_STATUS_OF = dict.fromkeys(["no_hand_found", "not_listed", "too_few_joints"], "no_hand")
#: What may end otherwise when it is tried again.
_STATUS_OF |= dict.fromkeys(["io_error", "crashed", "internal_error"], "failed")

#: What is rounded to which power of two (mm, px, radians, standard deviations); at most half of it is lost.
ROUNDING = {
    "vertices_mm": 1 / 16,
    "vertices_std_mm": 1 / 8,
    "joints3d_mm": 1 / 16,
    "joints3d_std_mm": 1 / 16,
    "joints2d_px": 1 / 16,
    "joints2d_std_px": 1 / 16,
    "landmark_depth_px": 1 / 16,
    "pose": 1 / 32768,  # moves a fingertip by less than 0.01 mm
    "betas": 1 / 32768,
}

#: The same for meshes that are drawn; finer steps would be larger files for what is a draw anyway.
SAMPLES_ROUNDING = {"joints3d_samples_mm": 1 / 16, "vertices_samples_mm": 1 / 8}

#: Of zstd: 2 % smaller than at 1 for 0.06 ms a hand more; at 9 another 1 % costs 0.14 ms (docs/benchmarks.md).
_LEVEL = 5

CAMERA = pa.struct(
    [
        ("scale", pa.float32()),  # crop half-sides per millimetre
        ("rotation", pa.list_(pa.float32(), 3)),  # axis-angle, radians
        ("translation", pa.list_(pa.float32(), 2)),  # crop half-sides
        ("cam_t_mm", pa.list_(pa.float32(), 3)),
        ("focal_px", pa.float32()),
        ("principal_px", pa.list_(pa.float32(), 2)),
        ("focal_source", pa.string()),  # given or assumed
    ]
)


def without_hand(reason: str, message: str) -> dict[str, str]:
    """`status`, `reason` and `error` of a row that holds no hand."""
    return {"status": _STATUS_OF.get(reason, "unreadable"), "reason": reason, "error": message}


def label_schema(
    vertex_count: int,
    metadata: Mapping[str, str] | None = None,
    passed: Mapping[str, pa.DataType] | None = None,
    samples: int = 0,
) -> pa.Schema:
    """The columns of a label file for a hand of V vertices, then those that a list passes through.

    `metadata` goes into the file's own. `samples` drawn meshes for each hand have columns only where there are any.
    """
    xyz = pa.list_(pa.float32(), 3)
    joints3d = pa.list_(xyz, 21)
    joints2d = pa.list_(pa.list_(pa.float32(), 2), 21)
    vertices = pa.list_(xyz, vertex_count)
    drawn = [pa.list_(joints3d, samples), pa.list_(vertices, samples)]
    return pa.schema(
        [
            ("image_uri", pa.string()),
            ("image_id", pa.string()),
            ("duplicate", pa.bool_()),
            ("frame_index", pa.int32()),
            ("frame_time_s", pa.float64()),
            ("hand_index", pa.int8()),
            ("status", pa.string()),
            ("reason", pa.string()),
            ("error", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("box_xyxy", pa.list_(pa.float32(), 4)),
            ("box_source", pa.string()),
            ("crop_xyxy", pa.list_(pa.float32(), 4)),
            ("is_right", pa.bool_()),
            ("side_score", pa.float32()),
            ("detection_score", pa.float32()),
            ("joints3d_mm", joints3d),
            ("joints3d_std_mm", joints3d),
            ("joints2d_px", joints2d),
            ("joints2d_std_px", joints2d),
            ("landmark_depth_px", pa.list_(pa.float32(), 21)),
            ("vertices_mm", vertices),
            ("vertices_std_mm", vertices),
            *(zip(SAMPLES_ROUNDING, drawn, strict=True) if samples else ()),
            ("pose", pa.list_(pa.float32(), 48)),
            ("betas", pa.list_(pa.float32(), 10)),
            ("camera", CAMERA),
            ("vertex_rgb", pa.list_(pa.list_(pa.uint8(), 3), vertex_count)),
            ("vertex_visible", pa.list_(pa.bool_(), vertex_count)),
            ("visible_fraction", pa.float32()),
            ("joint_std_mm", pa.float32()),
            ("max_joint_std_mm", pa.float32()),
            ("vertex_std_mm", pa.float32()),
            ("checkpoint", pa.string()),
            *(passed or {}).items(),
        ],
        metadata=dict(metadata or {}),
    )


def labels_to_table(
    rows: Sequence[Mapping[str, Any]], hands: Mapping[str, Any], hand_rows: Sequence[int], schema: pa.Schema
) -> pa.Table:
    """Rows of photos joined with the hands found in some of them.

    Args:
        rows: one mapping a row, scalar columns only; an absent column is null.
        hands: column to an array over hands (n, ...), or None for a column the model does not give; `camera` to a
            mapping of its fields.
        hand_rows: the row of each hand. Columns of `hands` are null in every other row.
        schema: from `label_schema`. Values are rounded as `ROUNDING` and `SAMPLES_ROUNDING` say.
    """
    missing = np.ones(len(rows), bool)
    missing[list(hand_rows)] = False
    steps = ROUNDING | SAMPLES_ROUNDING
    columns = []
    for field in schema:
        if field.name in hands:
            values = _rounded(hands[field.name], steps.get(field.name))
            columns.append(_scattered(values, field.type, np.asarray(hand_rows, np.int64), missing))
        else:
            columns.append(pa.array([row.get(field.name) for row in rows], field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _rounded(values: Any, step: float | None) -> Any:
    if step is None or values is None:
        return values
    rounded = np.multiply(values, np.float32(1 / step), dtype=np.float32)
    np.rint(rounded, out=rounded)
    rounded *= np.float32(step)
    return rounded


def _scattered(values: Any, kind: pa.DataType, hand_rows: np.ndarray, missing: np.ndarray) -> pa.Array:
    """An Arrow array over rows from values over hands: plain, nested fixed-size lists, or a struct of those."""
    if values is None:
        return pa.nulls(len(missing), kind)
    if pa.types.is_struct(kind):
        parts = [_scattered(values[f.name], f.type, hand_rows, missing) for f in kind]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=pa.array(missing))
    if pa.types.is_string(kind):
        by_row: list[str | None] = [None] * len(missing)
        for row, value in zip(hand_rows, values, strict=True):
            by_row[row] = value
        return pa.array(by_row, kind)
    sizes, element = [], kind
    while pa.types.is_fixed_size_list(element):
        sizes.append(element.list_size)
        element = element.value_type
    dense = np.zeros((len(missing), *sizes), element.to_pandas_dtype())
    dense[hand_rows] = values
    if not sizes:
        return pa.array(dense, kind, mask=missing)
    array = pa.array(dense.reshape(-1))
    for size in reversed(sizes[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return pa.FixedSizeListArray.from_arrays(array, type=kind, mask=pa.array(missing))


def encode_table(table: pa.Table) -> bytes:
    """The bytes of a Parquet file; the same table gives the same bytes."""
    sink = io.BytesIO()
    write_tables(sink, [table], table.schema)
    return sink.getvalue()


def _leaf(schema: pa.Schema, column: str) -> str:
    """The path that Parquet gives to the values of a column of nested lists; a part of a struct is given by its own."""
    kind, path = None if "." in column else schema.field(column).type, column
    while kind is not None and pa.types.is_fixed_size_list(kind):
        kind, path = kind.value_type, f"{path}.list.element"
    return path


def write_tables(sink: Any, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """One Parquet file of tables as they come, a row group each; `sink` is a path or an open file."""
    dictionary = ["status", "reason", "box_source", "camera.focal_source", "checkpoint", "vertex_rgb"]
    split = [_leaf(schema, name) for name in (*ROUNDING, *SAMPLES_ROUNDING) if name in schema.names]
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=_LEVEL,
        use_dictionary=[_leaf(schema, name) for name in dictionary if name.split(".")[0] in schema.names],
        use_byte_stream_split=split,
    ) as writer:
        for table in tables:
            writer.write_table(table)
