"""Per-vertex columns of a sequence, read once and stored in temporary files; rows are loaded in blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.labels.arrays import array_of
from annotator.track.disk_array import DiskArray

#: Label columns with a value for each vertex.
VERTEX_COLUMNS = ("vertices_mm", "vertices_std_mm", "vertex_rgb", "vertex_visible")


class VertexRows:
    """The columns `VERTEX_COLUMNS` of n rows."""

    def __init__(self, tables: Iterable[pa.Table], vertex_count: int) -> None:
        """Keep the rows of tables, in order; a table may lack columns."""
        xyz = (vertex_count, 3)
        self.columns = {
            "vertices_mm": DiskArray(xyz, np.dtype(np.float32)),
            "vertices_std_mm": DiskArray(xyz, np.dtype(np.float32)),
            "vertex_rgb": DiskArray(xyz, np.dtype(np.uint8)),
            "vertex_visible": DiskArray((vertex_count,), np.dtype(np.bool_)),
        }
        valid: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in VERTEX_COLUMNS}
        finite, rgb = [], []
        count = 0
        for table in tables:
            for name, column in self.columns.items():
                is_present = name in table.column_names
                is_valid = np.asarray(table[name].is_valid()) if is_present else np.zeros(len(table), bool)
                valid[name].append(is_valid)
                if is_valid.any():
                    values = array_of(table[name])
                    column.write(count, values)
                if name == "vertices_mm":
                    finite.append(is_valid & np.isfinite(values).all((1, 2)) if is_valid.any() else is_valid)
            rgb.append(_mean_rgb(table))
            count += len(table)
        self._valid = {name: np.concatenate(parts) for name, parts in valid.items()}
        self.rgb: NDArray[np.float64] = np.concatenate(rgb)  # (n, 3) of the visible skin; NaN where not known
        self.is_finite: NDArray[np.bool_] = np.concatenate(finite)  # (n,) of vertices

    def without_gaps(self, rows: NDArray[np.int64]) -> set[str]:
        """Return the names of the columns in which none of these rows is null."""
        return {name for name, valid in self._valid.items() if valid[rows].all()}

    def read(self, names: Iterable[str], rows: NDArray[np.int64]) -> dict[str, Any]:
        """Return columns (n, ...) of some rows."""
        return {name: self.columns[name].read(rows) for name in names}


def _mean_rgb(table: pa.Table) -> NDArray[np.float64]:
    """Return the mean colour (n, 3) of each row's visible vertices, 0 to 255; NaN where there are none."""
    if not {"vertex_rgb", "vertex_visible"} <= set(table.column_names) or not len(table):
        return np.full((len(table), 3), np.nan)
    seen = array_of(table["vertex_visible"]).astype(np.float64)
    is_valid = np.asarray(table["vertex_rgb"].is_valid()) & np.asarray(table["vertex_visible"].is_valid())
    count = np.where(is_valid & (seen.sum(1) > 0), seen.sum(1), np.nan)[:, None]
    mean: NDArray[np.float64] = np.einsum("nv,nvc->nc", seen, array_of(table["vertex_rgb"])) / count
    return mean
