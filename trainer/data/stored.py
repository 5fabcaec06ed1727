"""Examples in `OUT/data/*.parquet`: their order in every epoch, and reading only the rows of a step."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import UserError, first_line
from annotator.hand.model import HandModel
from annotator.labels.schema import SCHEMA_VERSION
from annotator.storage.files import absolute, join, names_in, open_file, read_if_exists
from trainer.batch import Batch
from trainer.config import SourceConfig
from trainer.data.examples import SUMMARY_FILE, UNFINISHED
from trainer.data.read import COLUMNS, FACTS, Facts, Rows, facts_of, read_example

#: Lanes of a collection: the maximum number of workers. Each lane holds one row group in memory.
LANES = 48

#: Files kept open at least, or one per lane: opening one reads its footer, whose size is that of five photos.
OPEN_FILES = 8

#: Width of a real photo's crop over that of the network's crop, for augmentation to rotate and shift.
MARGIN = 1.4


class _RowRange(NamedTuple):
    """A range of rows in a row group."""

    file: str
    group: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class StoredExamples:
    """Examples from `OUT/data/*.parquet`, in a different order every epoch."""

    def __init__(
        self, url: str, hand: HandModel, size_px: int, config: SourceConfig, seed: int, margin: float = MARGIN
    ) -> None:
        """Read only the footers of the files. Images of `size_px` show the hand's crop `margin` times as wide.

        Meshes of a hand model other than `hand` are left out, which masks L_V.

        Raises:
            UserError: there are no examples, or files of several hand models.
        """
        self.url, self.config, self.seed, self.margin = url, config, seed, margin
        self.size_px, self.vertex_count = size_px, hand.vertex_count
        names = sorted(name for name in names_in(join(url, "data")) if name.endswith(".parquet"))
        if read_if_exists(join(url, SUMMARY_FILE)) == UNFINISHED:
            raise UserError(f"'{url}' is an unfinished conversion: delete it and convert again")
        if not names:
            raise UserError(f"'{url}' holds no examples (data/*.parquet): make them with `amvur convert`")
        with ThreadPoolExecutor(16) as pool:
            footers = list(pool.map(lambda name: _footer(join(url, "data", name)), names))
        self.has_vertices = _check_hand(url, footers, hand)
        counted = [
            (name, g, footer.metadata.row_group(g).num_rows)
            for name, footer in zip(names, footers, strict=True)
            for g in range(footer.metadata.num_row_groups)
        ]
        groups = _window(counted, config.first, config.count)
        if not groups:
            raise UserError(f"'{url}' has no examples from number {config.first} on: lower `first`")
        self._groups = groups
        # Row number at the end of each group.
        self._ends = np.cumsum([stop - start for _, _, start, stop in groups])
        self.total = int(self._ends[-1])
        self.lanes = min(LANES, self.total)
        self._close()

    def _close(self) -> None:
        self._order: dict[
            int, tuple[int, list[_RowRange]]
        ] = {}  # per lane: the epoch, and its pieces in order
        self._held: OrderedDict[tuple[str, int], Rows] = OrderedDict()
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process: it includes the footers' contents, but no open files."""
        own = {"_order", "_held", "_files"}
        return {name: value for name, value in vars(self).items() if name not in own} | {
            "url": self.places[0]
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._close()

    @property
    def places(self) -> tuple[str, ...]:
        """Return the folder or URL, as other processes find it."""
        return (absolute(self.url),)

    def _pieces(self, lane: int) -> list[_RowRange]:
        """Return the row ranges of a lane; lanes differ by one row at most."""
        return self._between(*(edge * self.total // self.lanes for edge in (lane, lane + 1)))

    def _between(self, first: int, last: int) -> list[_RowRange]:
        """Return the row ranges of the examples from `first` until before `last`, in the order of the files."""
        found = []
        for i in range(bisect_right(self._ends, first), len(self._groups)):
            name, group, start, stop = self._groups[i]
            before = int(self._ends[i]) - (stop - start)
            if before >= last:
                break
            found.append(
                _RowRange(
                    name, group, start + max(first - before, 0), start + min(last - before, stop - start)
                )
            )
        return found

    def __len__(self) -> int:
        return self.total

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return the examples with these numbers."""
        return Batch.join([self._example(number) for number in numbers])

    def in_order(self, size: int, rows: range | None = None) -> Iterator[tuple[Batch, list[Facts]]]:
        """Yield examples once in batches with their facts, in the order of the files.

        `rows` are their indices in the window; default all.
        """
        rows = rows or range(self.total)
        part: list[tuple[Batch, Facts]] = []
        for name, group, start, stop in self._between(rows.start, rows.stop):
            held = self._rows(name, group, (*COLUMNS, *FACTS))
            for row in range(start, stop):
                part.append((self._read(held, row), facts_of(held, row)))
                if len(part) == size:
                    yield Batch.join([batch for batch, _ in part]), [facts for _, facts in part]
                    part = []
        if part:
            yield Batch.join([batch for batch, _ in part]), [facts for _, facts in part]

    def _example(self, number: int) -> Batch:
        lane, position = number % self.lanes, number // self.lanes
        rows = (lane + 1) * self.total // self.lanes - lane * self.total // self.lanes
        epoch, position = divmod(position, rows)
        if self._order.get(lane, (-1,))[0] != epoch:
            pieces = self._pieces(lane)
            mixed = np.random.default_rng([self.seed, lane, epoch]).permutation(len(pieces))
            self._order[lane] = epoch, [pieces[i] for i in mixed]
        index = 0
        while position >= len(piece := self._order[lane][1][index]):
            position -= len(piece)
            index += 1
        row = np.random.default_rng([self.seed, lane, epoch, index]).permutation(len(piece))[position]
        return self._read(self._rows_held(piece), piece.start + int(row))

    def _rows_held(self, piece: _RowRange) -> Rows:
        """Return the row group of a piece from a cache of the last used ones, shared by lanes."""
        key = piece.file, piece.group
        if key not in self._held:
            while len(self._held) > len(self._order):
                self._held.popitem(last=False)
            self._held[key] = self._rows(*key)
        self._held.move_to_end(key)
        return self._held[key]

    def _read(self, rows: Rows, row: int) -> Batch:
        targets = tuple(t for t in self.config.targets if t != "vertices" or self.has_vertices)
        return read_example(rows, row, self.size_px, self.margin, targets, self.vertex_count)

    def _rows(self, name: str, group: int, columns: Sequence[str] = COLUMNS) -> Rows:
        if name not in self._files:
            while len(self._files) > max(len(self._order), OPEN_FILES):
                self._files.popitem(last=False)[1].close()
            self._files[name] = pq.ParquetFile(open_file(join(self.url, "data", name)))
        self._files.move_to_end(name)
        file = self._files[name]
        existing = [column for column in columns if column in file.schema_arrow.names]
        return Rows(file.read_row_group(group, columns=existing, use_threads=False))


def _window(groups: list[tuple[str, int, int]], first: int, count: int) -> list[tuple[str, int, int, int]]:
    """Return the row ranges (file, group, start, stop) of examples first ... first + count."""
    kept, seen = [], 0
    for name, group, rows in groups:
        start = max(first - seen, 0)
        stop = min(first + count - seen, rows) if count else rows
        if start < stop:
            kept.append((name, group, start, stop))
        seen += rows
    return kept


def _footer(url: str) -> pq.ParquetFile:
    try:
        with open_file(url) as file:
            return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise UserError(f"'{url}' is damaged: {first_line(error)}") from None


def _check_hand(url: str, footers: Sequence[pq.ParquetFile], hand: HandModel) -> bool:
    """Return whether these examples have meshes of this hand model."""
    for name in ("image", "is_right", "width", "height"):
        if name not in footers[0].schema_arrow.names:
            raise UserError(
                f"'{url}' holds no training examples (missing column '{name}'): use `amvur convert`"
            )
    facts = [json.loads((footer.schema_arrow.metadata or {}).get(b"amvur", b"{}")) for footer in footers]
    versions = {fact.get("schema_version", SCHEMA_VERSION) for fact in facts}
    if versions != {SCHEMA_VERSION}:
        raise UserError(
            f"'{url}' holds examples of label schema {', '.join(map(str, sorted(versions)))}, but amvur reads schema "
            f"{SCHEMA_VERSION}: convert them again"
        )
    hands = {fact.get("hand") for fact in facts}
    if len(hands) > 1:
        raise UserError(
            f"'{url}' mixes hand models {', '.join(map(str, hands))}: convert each to its own folder"
        )
    return hands == {hand.id}
