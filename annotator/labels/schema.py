"""The label schema, version 2: one row per hand, in plain Arrow types.

Columns are fixed-size lists of plain element types, which pandas, polars, DuckDB and Hugging Face `datasets` read
directly. Large columns are rounded to a power of two of a millimetre and stored byte-stream-split under zstd, so that
equal high bytes lie together. Colours use a dictionary of up to 256 values, one byte each: plain Parquet takes four
bytes, and DuckDB before 2.0 can't read byte-stream-split integers.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import UserError
from annotator.photos.errors import Reason

#: Version 1 has 3D in crop axes; version 2 in camera axes (`annotator.coordinates`), with the principal point.
SCHEMA_VERSION = 2

#: The closed list of `reason`, the cause of a row without a hand; null for status `ok`.
REASONS = (
    *get_args(Reason),
    *("bad_row", "no_hand_found", "not_listed", "too_few_joints", "crashed", "not_finite", "internal_error"),
)

_STATUS_OF = dict.fromkeys(["no_hand_found", "not_listed", "too_few_joints"], "no_hand")
#: Reasons that a retry may resolve.
_STATUS_OF |= dict.fromkeys(["io_error", "crashed", "not_finite", "internal_error"], "failed")

#: Columns to predict: all, all but the texture, or neither texture nor mesh.
Columns = Literal["all", "mesh", "joints"]

#: Columns of the mesh, which `joints` leaves out.
MESH_COLUMNS = (
    *("vertices_mm", "vertices_std_mm", "vertex_visible", "visible_fraction", "vertex_std_mm"),
    "penetration_mm",
)
_LEFT_OUT: dict[Columns, tuple[str, ...]] = {
    "all": (),
    "mesh": ("vertex_rgb",),
    "joints": ("vertex_rgb", *MESH_COLUMNS),
}

#: The rounding step of each column, a power of two in its unit (mm, px, radians, betas); the error is at most half.
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

#: The rounding steps of samples; finer steps only make files larger, because samples are random.
SAMPLES_ROUNDING = {"joints3d_samples_mm": 1 / 16, "vertices_samples_mm": 1 / 8}

#: The zstd level: files 2 % smaller than at 1, for 0.06 ms per hand; level 9 saves 1 % more for 0.14 ms
#: (docs/benchmarks.md).
_LEVEL = 5

CAMERA = pa.struct(
    [
        ("scale", pa.float32()),  # crop half-sides per millimetre
        ("rotation", pa.list_(pa.float32(), 3)),  # axis-angle, radians
        ("translation", pa.list_(pa.float32(), 2)),  # crop half-sides
        ("cam_t_mm", pa.list_(pa.float32(), 3)),
        ("focal_px", pa.float32()),
        ("principal_px", pa.list_(pa.float32(), 2)),
        ("focal_source", pa.string()),  # given, exif or assumed
    ]
)


def without_hand(reason: str, message: str) -> dict[str, str]:
    """Return `status`, `reason` and `error` of a row without a hand."""
    return {"status": _STATUS_OF.get(reason, "unreadable"), "reason": reason, "error": message}


def check_columns(columns: str, samples: int = 0) -> None:
    """Check a choice of columns.

    Raises:
        UserError: there is no such choice, or it leaves out the mesh, of which `samples` are drawn.
    """
    if columns not in get_args(Columns):
        raise UserError(f"columns is {columns!r}, may be {', '.join(get_args(Columns))}")
    if samples and columns == "joints":
        raise UserError("samples are meshes, which columns 'joints' leaves out: give 'mesh' or 'all'")


def label_schema(
    vertex_count: int,
    metadata: Mapping[str, str] | None = None,
    passed: Mapping[str, pa.DataType] | None = None,
    samples: int = 0,
    columns: Columns = "all",
) -> pa.Schema:
    """Return the columns of a label file, followed by the columns passed through from a list.

    Args:
        vertex_count: vertices of the hand model.
        metadata: Parquet metadata of the file.
        passed: names and types of the columns passed through.
        samples: samples per hand; with 0 their columns are absent.
        columns: the others are absent too.
    """
    xyz = pa.list_(pa.float32(), 3)
    joints3d = pa.list_(xyz, 21)
    joints2d = pa.list_(pa.list_(pa.float32(), 2), 21)
    vertices = pa.list_(xyz, vertex_count)
    drawn = [pa.list_(joints3d, samples), pa.list_(vertices, samples)]
    fields = [
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
        ("joint_visible", pa.list_(pa.bool_(), 21)),
        ("joint_visible_score", pa.list_(pa.float32(), 21)),
        ("hidden_joints", pa.int8()),
        ("joint_std_mm", pa.float32()),
        ("max_joint_std_mm", pa.float32()),
        ("vertex_std_mm", pa.float32()),
        ("hand_length_mm", pa.float32()),
        ("hand_length_std_mm", pa.float32()),
        ("cam_t_std_mm", pa.list_(pa.float32(), 3)),
        ("penetration_mm", pa.float32()),
        ("checkpoint", pa.string()),
        *(passed or {}).items(),
    ]
    left_out = _LEFT_OUT[columns]
    return pa.schema([field for field in fields if field[0] not in left_out], metadata=dict(metadata or {}))


def labels_to_table(
    rows: Sequence[Mapping[str, Any]], hands: Mapping[str, Any], hand_rows: Sequence[int], schema: pa.Schema
) -> pa.Table:
    """Return a table of rows joined with the hands of some of them.

    Args:
        rows: one mapping per row, with scalar columns only; an absent column is null.
        hands: column -> array over hands (n, ...), or None for a column that the model does not output; `camera` ->
            mapping of its fields.
        hand_rows: the row of each hand. Columns of `hands` are null in all other rows.
        schema: from `label_schema`. Values are rounded by `ROUNDING` and `SAMPLES_ROUNDING`.
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
    """Return an Arrow array over rows from values over hands: plain, nested fixed-size lists, or a struct of these."""
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
    """Return a table as the bytes of a Parquet file; equal tables give equal bytes."""
    sink = io.BytesIO()
    write_tables(sink, [table], table.schema)
    return sink.getvalue()


def _leaf(schema: pa.Schema, column: str) -> str:
    """Return the Parquet path of the values of a column of nested lists; `struct.field` stays as it is."""
    kind, path = None if "." in column else schema.field(column).type, column
    while kind is not None and pa.types.is_fixed_size_list(kind):
        kind, path = kind.value_type, f"{path}.list.element"
    return path


def write_tables(sink: Any, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write tables to one Parquet file as they arrive, one row group each; `sink` is a path or an open file."""
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
