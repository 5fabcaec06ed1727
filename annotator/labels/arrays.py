"""Columns of labels as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def array_of(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """Return a column of numbers or nested fixed-size lists as (n, ...); null rows are NaN, or 0 for integers."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    shape, values = [], array.drop_null() if array.null_count else array
    while pa.types.is_fixed_size_list(values.type):
        shape.append(values.type.list_size)
        values = values.flatten()
    dense = values.to_numpy(zero_copy_only=False).reshape(len(array) - array.null_count, *shape)
    if not array.null_count:
        return dense
    padded = np.full((len(array), *shape), np.nan if dense.dtype.kind == "f" else 0, dense.dtype)
    padded[array.is_valid().to_numpy(zero_copy_only=False)] = dense
    return padded


def joined_columns(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Concatenate label columns of several groups of hands: arrays, None in all parts, or nested mappings."""

    def join(values: list[Any]) -> Any:
        if values[0] is None:
            return None
        return joined_columns(values) if isinstance(values[0], dict) else np.concatenate(values)

    return {name: join([part[name] for part in parts]) for name in parts[0]} if parts else {}
