"""Which hands of some label columns hold only numbers that can be labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: No length, pixel or angle is larger; what is would overflow when it is rounded for a file.
_LARGEST = 1e30


def finite_rows(columns: dict[str, Any], count: int) -> NDArray[np.bool_]:
    """Return where (count,) all floats of a hand are finite; None columns count as finite."""
    fine = np.ones(count, bool)
    for values in columns.values():
        if isinstance(values, dict):
            fine &= finite_rows(values, count)
        elif values is not None and np.issubdtype(values.dtype, np.floating):
            fine &= (np.abs(values) < _LARGEST).reshape(count, -1).all(1)  # false where NaN
    return fine


def rows_of(columns: dict[str, Any], rows: Any) -> dict[str, Any]:
    """Select some rows of all columns, or one."""
    return {
        name: None if values is None else rows_of(values, rows) if isinstance(values, dict) else values[rows]
        for name, values in columns.items()
    }
