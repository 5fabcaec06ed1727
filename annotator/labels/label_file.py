"""One label file, read in few requests: some columns of all rows, or all columns of some rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from annotator.labels.folder import calibration_of, kept_groups, label_facts, opened_label_file
from annotator.storage.files import join
from annotator.storage.ranges import RangedFile


class LabelFile:
    """One label file, of which only the needed pages are read; counts the bytes read."""

    def __init__(self, path: str, file: pq.ParquetFile, raw: RangedFile) -> None:
        self.path, self.bytes_read, self._file, self._raw = path, 0, file, raw
        self.names: list[str] = file.schema_arrow.names
        self.facts = label_facts(path, file.schema_arrow)
        self.calibration = calibration_of(path, self.facts)
        self._metadata = file.metadata
        self.bytes_total = sum(
            end - start for start, end in self._ranges(range(self._metadata.num_row_groups), None)
        )

    def scalars(self, columns: Sequence[str]) -> pa.Table:
        """Read some columns of all rows."""
        self._fetch(range(self._metadata.num_row_groups), set(columns))
        return self._file.read(columns=list(columns), use_threads=False)

    def rows(self, is_kept: NDArray[np.bool_]) -> pa.Table:
        """Read all columns of the kept rows; row groups without any are skipped."""
        groups, mask = kept_groups(self._file, is_kept)
        self._fetch(groups, None)
        return self._file.read_row_groups(groups, use_threads=False).filter(pa.array(mask))

    def _fetch(self, groups: Sequence[int], columns: set[str] | None) -> None:
        ranges = self._ranges(groups, columns)
        self.bytes_read += sum(end - start for start, end in ranges)
        self._raw.fetch(ranges)

    def _ranges(self, groups: Sequence[int], columns: set[str] | None) -> list[tuple[int, int]]:
        """Return the byte ranges of some columns' pages; None means all columns."""
        ranges = []
        for number in groups:
            group = self._metadata.row_group(number)
            for k in range(group.num_columns):
                column = group.column(k)
                if columns is None or column.path_in_schema.partition(".")[0] in columns:
                    start = column.data_page_offset
                    if column.has_dictionary_page and column.dictionary_page_offset is not None:
                        start = min(start, column.dictionary_page_offset)
                    ranges.append((start, start + column.total_compressed_size))
        return ranges


@contextmanager
def opened_labels(labels: str, name: str, size: int) -> Iterator[LabelFile]:
    """Open one label file of a folder; raises as `opened_label_file` does."""
    path = join(labels, "data", name)
    with RangedFile(path, size) as raw, opened_label_file(path, cast(IO[bytes], raw)) as file:
        yield LabelFile(path, file, raw)
