"""Label columns of a sequence's hands, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.labels.arrays import array_of

#: Columns that a filled frame, or one of the other side, copies from the nearest labelled frame, as it copies
#: `vertex_rgb` and `vertex_visible`.
NEAREST = ("visible_fraction", "joint_visible", "joint_visible_score", "hidden_joints")

_VECTORS = (
    *("box_xyxy", "crop_xyxy", "joints3d_mm", "joints3d_std_mm", "joints2d_px", "joints2d_std_px"),
    *("pose", "betas", "cam_t_std_mm"),
)
#: The length of a hand, and its std.
LENGTHS = ("hand_length_mm", "hand_length_std_mm")
_SCALARS = ("joint_std_mm", "max_joint_std_mm", "vertex_std_mm", *LENGTHS)

#: Columns that every tracked set has.
COLUMNS_OF_EVERY_TRACK = (*LENGTHS, "cam_t_std_mm")

#: Columns with an array per hand, without those per vertex; the others are values of rows.
HAND_COLUMNS = (*_VECTORS, *_SCALARS, *NEAREST, "is_right", "camera")


def columns_of_hands(table: pa.Table) -> dict[str, Any]:
    """Return the columns `HAND_COLUMNS` of a table of hands: arrays (n, ...), None where one is null, the camera's a
    mapping.
    """
    columns: dict[str, Any] = {
        name: _array(table[name]) if name in table.column_names else None  # older labels lack the newest
        for name in HAND_COLUMNS
        if name != "camera"
    }
    camera = table["camera"].combine_chunks()
    columns["camera"] = {
        field.name: camera.field(k).to_pylist() if pa.types.is_string(field.type) else _array(camera.field(k))
        for k, field in enumerate(camera.type)
    }
    return columns


def _array(column: Any) -> Any:
    """Return an array (n, ...); None where any is null."""
    return None if column.null_count else array_of(column)


def picked_columns(columns: dict[str, Any], rows: NDArray[np.int64]) -> dict[str, Any]:
    """Return the columns of some hands."""

    def picked(values: Any) -> Any:
        if values is None or isinstance(values, np.ndarray):
            return values if values is None else values[rows]
        return picked_columns(values, rows) if isinstance(values, dict) else [values[row] for row in rows]

    return {name: picked(values) for name, values in columns.items()}
