"""The sequences of a label set: all frames of a video, or the rows of a list that have one `sequence`."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from itertools import groupby
from typing import Any

import pyarrow as pa

from annotator.errors import UserError
from annotator.labels.folder import check_hand_model, label_facts, opened_label_file, read_columns
from annotator.labels.schema import SAMPLES_ROUNDING, label_schema
from annotator.sources.entry import Entry
from annotator.sources.label_set import LabelSet
from annotator.sources.source import Source
from annotator.storage.files import join

#: The column of a list with the name of a row's sequence.
SEQUENCE = "sequence"

#: Columns that tracking adds.
ADDED = {"track_id": pa.int32(), "source": pa.string()}

#: Where an entry lies in label files: name, first row, row after the last.
RowRange = tuple[str, int, int]


class SequenceSource(Source):
    """One entry for each sequence, and one for each run of photos outside all sequences."""

    def __init__(self, labels: str) -> None:
        """Check the first label file.

        Raises:
            UserError: the set is unfinished, holds no meshes or stds, no sequence, or is tracked already.
        """
        super().__init__()
        self._set = LabelSet(
            labels,
            unfinished="is unfinished: run the same `amvur annotate` or `amvur fit` command again first",
            empty="holds no labels (data/*.parquet): give a label set",
        )
        self.schema = self._set.schema
        self.facts = label_facts(self._set.path_of(self._set.files()[0]), self.schema)
        names = self.schema.names
        if not {"pose", "vertices_mm", "joints3d_std_mm"} <= set(names):
            raise UserError(
                f"'{self._set.name}' holds no meshes: give a label set of `amvur annotate` (without --columns "
                "joints) or `amvur fit`"
            )
        if "track_id" in names:
            raise UserError(f"'{self._set.name}' is tracked already: give the label set that was tracked")
        own = {*label_schema(1).names, *SAMPLES_ROUNDING}
        self.columns = {_renamed(field.name): field.type for field in self.schema if field.name not in own}
        self._has_sequence = SEQUENCE in names
        self.place = self._set.photos_place()

    @property
    def vertex_count(self) -> int:
        """Number of vertices of the hand model."""
        return int(self.schema.field("vertices_mm").type.list_size)

    def key(self, entry: Entry) -> tuple[int]:
        """Return the rank of the sequence's first row."""
        return (entry.order,)

    def __iter__(self) -> Iterator[Entry]:
        # The index may outgrow memory, so it is a temporary file of SQLite, which disappears with the process.
        with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as index:
            index.execute("pragma journal_mode = off")
            index.execute("begin")
            index.execute(
                "create table runs (sequence text, of_none int, file text, start int, stop int, photos int)"
            )
            index.executemany("insert into runs values (?, ?, ?, ?, ?, ?)", self._runs())
            index.execute("create index by_sequence on runs (sequence)")
            found = index.execute(
                "select sequence, max(of_none) from runs group by sequence order by min(rowid)"
            )
            if index.execute("select 1 from runs where not of_none limit 1").fetchone() is None:
                raise UserError(
                    f"'{self._set.name}' holds single photos: track labels of videos, or of a list with a "
                    f"`{SEQUENCE}` column"
                )
            for order, (name, of_none) in enumerate(found):
                runs = index.execute(
                    "select file, start, stop, photos from runs where sequence = ? order by rowid", (name,)
                ).fetchall()
                yield Entry(
                    path=name,
                    id=name,
                    order=order,
                    photos=sum(run[3] for run in runs),
                    extra={"pieces": [list(run[:3]) for run in runs], "of_none": bool(of_none)},
                )

    def _runs(self) -> Iterator[tuple[str, int, str, int, int, int]]:
        names = ["image_uri", "frame_index", "hand_index", *([SEQUENCE] if self._has_sequence else [])]
        for file in self._set.files():
            path = self._set.path_of(file)
            with opened_label_file(path) as opened:
                check_hand_model(path, label_facts(path, opened.schema_arrow), self.facts.get("hand"))
            rows = read_columns(self._set.labels, file, names).to_pylist()
            start = 0
            for name, group in groupby(rows, key=self._sequence_of):
                run = list(group)
                photos = sum(row["hand_index"] <= 0 for row in run)
                yield name or f"photos of {file}", int(name is None), file, start, start + len(run), photos
                start += len(run)

    def _sequence_of(self, row: dict[str, Any]) -> str | None:
        if self._has_sequence and row[SEQUENCE] is not None:
            return str(row[SEQUENCE])
        return None if row["frame_index"] is None else str(row["image_uri"])


def read_sequence(
    labels: str, entry: Entry, columns: list[str] | None = None, without: Collection[str] = ()
) -> pa.Table:
    """Return the rows of an entry of `SequenceSource`; each file is read once.

    Args:
        labels: the label set. entry: the sequence.
        columns: to read; default: all but samples.
        without: columns to leave out.
    """
    tables = []
    for file, ranges in groupby(_row_ranges(entry), key=lambda rows: rows[0]):
        with opened_label_file(join(labels, "data", file)) as opened:
            left_out = {*SAMPLES_ROUNDING, *without}
            names = columns or [name for name in opened.schema_arrow.names if name not in left_out]
            table = opened.read(names, use_threads=False)
        # Rows are copied, so that the rest of the file leaves memory.
        tables += [table.take(list(range(start, stop))) for _, start, stop in ranges]
    whole = pa.concat_tables(tables, promote_options="default").combine_chunks()
    return whole.rename_columns([_renamed(name) for name in whole.column_names])


def sequence_batches(labels: str, entry: Entry, columns: Collection[str], size: int) -> Iterator[pa.Table]:
    """Yield the rows of an entry in the order of `read_sequence`, up to `size` at a time.

    Args:
        labels: the label set. entry: the sequence.
        columns: to read, where a file has them.
        size: rows in memory.
    """
    for file, ranges in groupby(_row_ranges(entry), key=lambda rows: rows[0]):
        spans = [(start, stop) for _, start, stop in ranges]
        with opened_label_file(join(labels, "data", file)) as opened:
            names = [name for name in opened.schema_arrow.names if name in columns]
            first = 0
            for batch in opened.iter_batches(size, columns=names, use_threads=False):
                here = [(max(start - first, 0), min(stop - first, len(batch))) for start, stop in spans]
                for start, stop in here:
                    if start < stop:
                        yield pa.table(batch.slice(start, stop - start))
                first += len(batch)


def _row_ranges(entry: Entry) -> list[RowRange]:
    """Return the label-file rows of an entry of `SequenceSource`."""
    return [(file, start, stop) for file, start, stop in entry.extra["pieces"]]


def _renamed(name: str) -> str:
    """Return the name of a list's own column beside those that tracking adds."""
    return f"list_{name}" if name in ADDED else name
