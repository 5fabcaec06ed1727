"""Rows of an array in a file without a name, which ends with the process. Memory holds only the rows read."""

from __future__ import annotations

import tempfile

import numpy as np
from numpy.typing import NDArray

from annotator.storage.disk_space import name_in_errors, unnamed_path


class DiskArray:
    """An array (n, ...) in the folder for temporary files (`TMPDIR`)."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Make an empty array of rows with this shape."""
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._row_bytes = int(np.prod(shape)) * self._dtype.itemsize
        self._file = tempfile.TemporaryFile(prefix="amvur-")  # noqa: SIM115 - lives as long as the array

    def write(self, first: int, rows: NDArray) -> None:
        """Write rows (n, ...) from number `first` on.

        Raises:
            DiskFullError: the folder for temporary files is full.
        """
        self._file.seek(first * self._row_bytes)
        with name_in_errors(unnamed_path(), first * self._row_bytes + rows.nbytes):
            self._file.write(np.ascontiguousarray(rows, self._dtype).reshape(-1).view(np.uint8).data)
            self._file.flush()

    def read(self, rows: NDArray[np.int64]) -> NDArray:
        """Return the rows (n, ...) with these numbers; consecutive ones are read at once."""
        found = np.empty((len(rows), *self._shape), self._dtype)
        raw = found.reshape(len(rows), int(np.prod(self._shape))).view(np.uint8)
        ends = np.append(np.flatnonzero(np.diff(rows) != 1) + 1, len(rows))
        start = 0
        for end in ends if len(rows) else ():
            self._file.seek(int(rows[start]) * self._row_bytes)
            self._file.readinto(raw[start:end].data)
            start = end
        return found
