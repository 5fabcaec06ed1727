"""The wide columns of a sequence's rows, which are read once, kept in files and picked by row: memory holds blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.labels.arrays import array_of
from annotator.track.scratch import Scratch

#: Label columns with a value for each vertex.
WIDE = ("vertices_mm", "vertices_std_mm", "vertex_rgb", "vertex_visible")


class WideRows:
    """The columns `WIDE` of n rows."""

    def __init__(self, tables: Iterable[pa.Table], vertex_count: int) -> None:
        """Keep the rows of tables, in order; a table may lack columns."""
        xyz = (vertex_count, 3)
        self.columns = {
            "vertices_mm": Scratch(xyz, np.dtype(np.float32)),
            "vertices_std_mm": Scratch(xyz, np.dtype(np.float32)),
            "vertex_rgb": Scratch(xyz, np.dtype(np.uint8)),
            "vertex_visible": Scratch((vertex_count,), np.dtype(np.bool_)),
        }
        valid: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in WIDE}
        finite, rgb = [], []
        count = 0
        for table in tables:
            for name, column in self.columns.items():
                there = name in table.column_names
                is_valid = np.asarray(table[name].is_valid()) if there else np.zeros(len(table), bool)
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
