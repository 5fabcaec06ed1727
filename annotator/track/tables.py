"""The tracked rows of a sequence as tables of label files, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.labels.arrays import joined_columns
from annotator.labels.schema import labels_to_table
from annotator.labels.two_hands import fill_penetration
from annotator.track.columns import picked_columns
from annotator.track.vertex_columns import VERTEX_COLUMNS, VertexRows

Floats = NDArray[np.floating]

#: Rows of a table, at least: the hands of one frame are in one table.
BLOCK_ROWS = 256


class UnchangedMeshes:
    """Per-vertex columns of hands that keep their labels."""

    def __init__(
        self, vertex_rows: VertexRows, rows: NDArray[np.int64], names: set[str], vertex_std_mm: Floats | None
    ) -> None:
        """Take the columns `names` of `rows` (n,); the others are null. `vertex_std_mm` is of the same hands."""
        self._vertex_rows, self._rows, self._names = vertex_rows, rows, names
        self._std_mm = vertex_std_mm

    def __len__(self) -> int:
        return len(self._rows)

    def columns(self, hands: NDArray[np.int64]) -> dict[str, Any]:
        """Return the per-vertex columns of some hands, and `vertex_std_mm`."""
        columns = dict.fromkeys(VERTEX_COLUMNS) | self._vertex_rows.read(self._names, self._rows[hands])
        return columns | {"vertex_std_mm": None if self._std_mm is None else self._std_mm[hands]}


class SmoothedMeshes:
    """Per-vertex columns of the T frames of a track, made in order."""

    def __init__(
        self,
        vertex_rows: VertexRows,
        nearest: NDArray[np.int64],
        names: set[str],
        meshes: Callable[[], Iterator[tuple[Floats, Floats]]] | None,
    ) -> None:
        """Prepare a track.

        Args:
            vertex_rows: of the labels. nearest: (T,) the row there of the label near each frame.
            names: of columns that are not null.
            meshes: yields blocks of vertices and their std; None: keep the labels' meshes.
        """
        self._vertex_rows, self._nearest, self._names, self._meshes = vertex_rows, nearest, names, meshes
        self._blocks: Iterator[tuple[Floats, Floats]] | None = None
        self._made: list[tuple[Floats, Floats]] = []  # of the frames that come next

    def __len__(self) -> int:
        return len(self._nearest)

    def columns(self, frames: NDArray[np.int64]) -> dict[str, Any]:
        """Return the per-vertex columns of the next frames, and `vertex_std_mm`."""
        rows = self._nearest[frames]
        columns: dict[str, Any]
        if self._meshes is None:
            columns = dict.fromkeys(VERTEX_COLUMNS) | self._vertex_rows.read(self._names, rows)
        else:
            colours = {"vertex_rgb", "vertex_visible"}
            columns = dict.fromkeys(colours) | self._vertex_rows.read(self._names & colours, rows)
            self._blocks = self._blocks or self._meshes()
            columns["vertices_mm"], columns["vertices_std_mm"] = self._next(self._blocks, len(rows))
            if frames[-1] == len(self) - 1:
                self._blocks = None  # free its files and arrays
        return columns | {"vertex_std_mm": np.linalg.norm(columns["vertices_std_mm"], axis=-1).mean(1)}

    def _next(self, blocks: Iterator[tuple[Floats, Floats]], count: int) -> tuple[Floats, Floats]:
        while sum(len(vertices) for vertices, _ in self._made) < count:
            self._made.append(next(blocks))
        vertices, std = (np.concatenate(parts) for parts in zip(*self._made, strict=True))
        self._made = [(vertices[count:].copy(), std[count:].copy())] if len(vertices) > count else []
        return vertices[:count], std[:count]


@dataclass(frozen=True, eq=False)
class TrackedRows:
    """Rows of a sequence, and the columns of the n hands among them, in parts."""

    rows: list[dict[str, Any]]
    hand_rows: NDArray[np.int64]  # (n,)
    columns: dict[str, Any]  # over hands, without those per vertex
    parts: Sequence[UnchangedMeshes | SmoothedMeshes]  # their per-vertex columns
    frame: NDArray[np.int64]  # of each row
    faces: NDArray[np.integer] | None  # (F, 3) of the hand model; None: the hands of a frame are not compared

    def tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the tables of a label file, once; `schema` is from `label_schema`."""
        part = np.repeat(np.arange(len(self.parts)), [len(one) for one in self.parts])
        within = np.concatenate([np.arange(len(one)) for one in self.parts]) if self.parts else part
        for first, stop in self._blocks():
            rows = self.rows[first:stop]
            here = np.flatnonzero((self.hand_rows >= first) & (self.hand_rows < first + len(rows)))
            per_vertex = [
                self.parts[number].columns(within[here[part[here] == number]])
                for number in np.unique(part[here])
            ]
            columns = picked_columns(self.columns, here) | joined_columns(per_vertex)
            hand_rows = (self.hand_rows[here] - first).tolist()
            if self.faces is not None and columns:
                photos = [(self.frame[first + row], rows[row]["duplicate"]) for row in hand_rows]
                fill_penetration(rows, hand_rows, photos, columns, self.faces)
            yield labels_to_table(rows, columns, hand_rows, schema)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the first row of each block and the one after its last; no frame is in two blocks."""
        first = 0
        while first < len(self.rows):
            stop = min(first + BLOCK_ROWS, len(self.rows))
            if self.faces is not None:  # rows are in the order of frames
                stop = int(np.searchsorted(self.frame, self.frame[stop - 1], "right"))
            yield first, stop
            first = stop
