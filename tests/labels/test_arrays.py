"""Columns as arrays, compared with pyarrow's own conversion to lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from annotator.labels.arrays import array_of

NESTED = pa.list_(pa.list_(pa.float32(), 3), 2)
ROWS = [[[0, 1, 2], [3, 4, 5]], None, [[6, 7, 8], [9, 10, 11]], [[1, 1, 1], [2, 2, 2]]]


@pytest.mark.parametrize("rows", [ROWS, ROWS[2:], [None, None], []])
@pytest.mark.parametrize("cut", [0, 1])
def test_nested_lists_are_pyarrows_values_and_null_rows_are_nan(rows, cut):
    column = pa.array(rows, NESTED).slice(cut)
    expected = [np.full((2, 3), np.nan) if row is None else row for row in column.to_pylist()]
    for given in (column, pa.chunked_array([column[:1], column[1:]], NESTED)):
        values = array_of(given)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, np.reshape(expected, (-1, 2, 3)))


def test_null_integers_are_zero_and_scalars_stay_flat():
    np.testing.assert_array_equal(
        array_of(pa.array([[1, 2], None], pa.list_(pa.int64(), 2))), [[1, 2], [0, 0]]
    )
    np.testing.assert_array_equal(array_of(pa.array([1.5, None])), [1.5, np.nan])
