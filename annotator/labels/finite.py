"""Select hands whose label columns are all finite."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Above any length, pixel or angle; larger numbers would overflow when they are rounded for a file.
_MAX_ABS = 1e30


def finite_rows(columns: dict[str, Any], count: int) -> NDArray[np.bool_]:
    """Return where (count,) all floats of a hand are finite; None columns count as finite."""
    is_finite = np.ones(count, bool)
    for values in columns.values():
        if isinstance(values, dict):
            is_finite &= finite_rows(values, count)
        elif values is not None and np.issubdtype(values.dtype, np.floating):
            is_finite &= (np.abs(values) < _MAX_ABS).reshape(count, -1).all(1)  # false where NaN
    return is_finite


def rows_of(columns: dict[str, Any], rows: Any) -> dict[str, Any]:
    """Select some rows, or one, of all columns."""
    return {
        name: None if values is None else rows_of(values, rows) if isinstance(values, dict) else values[rows]
        for name, values in columns.items()
    }
