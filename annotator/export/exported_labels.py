"""Read the rows of a label set to export: status ok, meeting a condition, in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.hand import HandModel
from annotator.labels.arrays import array_of
from annotator.labels.conditions import Condition
from annotator.labels.folder import (
    check_hand_model,
    hand_of_labels,
    kept_groups,
    label_facts,
    label_file_sizes,
    opened_label_file,
    read_faces,
)
from annotator.runtime.ordered_tasks import in_order
from annotator.storage.files import is_local, join

#: Rows in memory at once: a few megabytes of meshes.
BATCH_ROWS = 256

#: Files whose schema is checked before the first is read.
_FILES_BEFORE = 32

#: Maximum files of a store that are read ahead, and their bytes, because a store answers slowly.
_AHEAD_FILES, _AHEAD_BYTES = 8, 128 << 20

Result = TypeVar("Result")

#: Columns of every label file.
_NEEDED = (
    *("image_uri", "image_id", "hand_index", "status", "width", "height"),
    *("box_xyxy", "is_right", "joints2d_px"),
)


class LabelsToExport:
    """A label set to export."""

    def __init__(
        self,
        place: str,
        where: str | None = None,
        limit: int = 0,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        hand: str | None = None,
        as_tasks: bool = False,
        workers: int | None = None,
    ) -> None:
        """Read the schema of the first file.

        Args:
            place: path or URL of the label set.
            where: a condition that rows must meet, see `annotator.labels.conditions`.
            limit: maximum number of rows; 0: all.
            on_progress: called with the numbers of read and of all files.
            hand: for `hand_model`: `open` (default), or `mano:PATH`.
            as_tasks, workers: as for `annotator.runtime.ordered_tasks.in_order`.

        Raises:
            UserError: these are not labels, their schema version differs, or a column of `where` is missing.
        """
        self.place, self.limit, self._on_progress, self.given_hand = place, limit, on_progress, hand
        self._as_tasks, self._workers = as_tasks, workers
        self._sizes = label_file_sizes(place)
        self.files = sorted(self._sizes)
        if not self.files:
            raise UserError(f"'{place}' holds no labels (data/*.parquet): give a label set")
        with opened_label_file(join(place, "data", self.files[0])) as file:
            self.schema: pa.Schema = file.schema_arrow
            facts = _facts(join(place, "data", self.files[0]), self.schema)
        self.hand: str | None = facts.get("hand")
        self.columns: list[str] = self.schema.names
        self._where = None if where is None else Condition(where, self.columns)
        self.rows = 0  # read so far, also those not exported
        self.is_cut = False  # whether the limit left rows out

    @property
    def vertex_count(self) -> int:
        """The number of vertices, V; 0 without meshes."""
        return self.schema.field("vertices_mm").type.list_size if "vertices_mm" in self.columns else 0

    def present(self, *names: str) -> list[str]:
        """Return the columns among `names` that exist in these labels."""
        return [name for name in names if name in self.columns]

    def need_meshes(self, to: str) -> NDArray[np.int64]:
        """Return the triangles (F, 3) of right hands.

        Raises:
            UserError: there are no meshes; the message names `to`, their purpose.
        """
        if "vertices_mm" not in self.columns:
            raise UserError(
                f"'{self.place}' holds no meshes (column 'vertices_mm'), which {to} needs: label "
                "photos without --columns joints"
            )
        try:
            return read_faces(self.place)
        except FileNotFoundError:
            raise UserError(
                f"'{self.place}' holds no faces.parquet, the triangles of its meshes: copy it from the "
                "label set that these labels come from"
            ) from None
        except (pa.ArrowInvalid, KeyError):
            raise UserError(f"'{join(self.place, 'faces.parquet')}' is damaged") from None

    def hand_model(self) -> HandModel:
        """Return the hand model of pose and betas.

        Raises:
            UserError: the labels have another one, or none.
        """
        if self.hand is None or "pose" not in self.columns:
            raise UserError(
                f"'{self.place}' holds no poses: give a label set of `amvur annotate` or `amvur fit`"
            )
        return hand_of_labels(self.place, self.hand, self.given_hand or "open")

    def spread(
        self, do: Callable[..., Result], shared: Any, items: Iterable[tuple[Any, ...]]
    ) -> Iterator[Result]:
        """Yield `do(shared, *item)` per item, in this process or as Ray tasks."""
        return in_order(do, shared, items, self._as_tasks, self._workers)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield columns of the rows to export, in order; tables are never empty.

        Raises:
            UserError: a file is damaged, has another hand model than the first, or lacks a column.
        """
        given = self.rows = 0
        # Checks some files early, so that most mistakes stop the command before it writes.
        for name in self.files[:_FILES_BEFORE]:
            with opened_label_file(join(self.place, "data", name)) as file:
                self._check(join(self.place, "data", name), file.schema_arrow, columns)
        for number, tables in enumerate(self._tables(columns)):
            for read, table in tables:
                self.rows += read
                if self.limit and given + len(table) > self.limit:
                    self.is_cut = True
                    table = table.slice(0, self.limit - given)
                given += len(table)
                if len(table):
                    yield table
                if self.is_cut:
                    return
            if given:
                self._on_progress(number + 1, len(self.files))

    def _tables(self, columns: Sequence[str]) -> Iterator[Iterable[tuple[int, pa.Table]]]:
        """Yield each file's parts as `_of_file` does; files of a store are read ahead."""
        paths = [join(self.place, "data", name) for name in self.files]
        ahead = min(_AHEAD_FILES, _AHEAD_BYTES // max(1, *self._sizes.values()))
        if is_local(self.place) or ahead < 2:
            for path in paths:
                yield self._of_file(path, columns)
            return
        rest, waiting = iter(paths), deque[Future[list[tuple[int, pa.Table]]]]()
        with ThreadPoolExecutor(ahead) as pool:
            try:
                while True:
                    for path in islice(rest, ahead - len(waiting)):
                        waiting.append(pool.submit(lambda path: list(self._of_file(path, columns)), path))
                    if not waiting:
                        return
                    yield waiting.popleft().result()
            finally:
                for one in waiting:
                    one.cancel()

    def _of_file(self, path: str, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield the rows to export in parts, each with the number of rows read for it."""
        with opened_label_file(path) as file:
            self._check(path, file.schema_arrow, columns)
            is_kept = self._is_kept(file)
            wanted = pa.schema([self.schema.field(name) for name in columns])
            groups, mask = kept_groups(file, is_kept)
            yield len(is_kept), wanted.empty_table()
            if not groups:
                return
            at = 0
            for batch in file.iter_batches(BATCH_ROWS, groups, list(columns), use_threads=False):
                part = pa.array(mask[at : at + len(batch)])
                at += len(batch)
                table = pa.Table.from_batches([batch]).filter(part).select(list(columns))
                if len(table):
                    yield 0, table.cast(wanted)

    def _check(self, path: str, schema: pa.Schema, columns: Sequence[str]) -> None:
        check_hand_model(path, _facts(path, schema), self.hand)
        for name in columns:
            if name not in schema.names:
                raise UserError(f"'{path}' has no column '{name}', which other files here have")

    def _is_kept(self, file: pq.ParquetFile) -> NDArray[np.bool_]:
        needed = ["status", *(self._where.columns if self._where else [])]
        scalars = file.read(columns=list(dict.fromkeys(needed)), use_threads=False)
        is_kept: NDArray[np.bool_] = pc.fill_null(pc.equal(scalars["status"], "ok"), False).to_numpy()
        return is_kept if self._where is None else is_kept & self._where.mask(scalars)


def _facts(path: str, schema: pa.Schema) -> dict[str, Any]:
    """Return the metadata of a label file.

    Raises:
        UserError: as for `label_facts`; or a column is missing, or has lists of variable length.
    """
    facts = label_facts(path, schema)
    for name in _NEEDED:
        if name not in schema.names:
            raise UserError(f"'{path}' is not a label file: it has no column '{name}'")
    for name in ("box_xyxy", "joints2d_px", "vertices_mm"):
        if name in schema.names and not pa.types.is_fixed_size_list(schema.field(name).type):
            raise UserError(
                f"'{path}' has lists of variable length in '{name}': keep the column types, as pyarrow does"
            )
    return facts


def camera_field(table: pa.Table, name: str) -> NDArray[Any]:
    """Return a field of the camera as `array_of` does."""
    return array_of(pc.struct_field(table["camera"], name))
