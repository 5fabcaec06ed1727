"""The rows of a sequence while it is tracked: those of its labels, and added ones for filled frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.labels.arrays import joined_columns
from annotator.track.columns import HAND_COLUMNS
from annotator.track.tables import SmoothedMeshes, TrackedRows, UnchangedMeshes
from annotator.track.vertex_columns import VERTEX_COLUMNS


def rows_without_arrays(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table, in no track, without the columns that are arrays over hands."""
    names = [name for name in table.column_names if name not in HAND_COLUMNS and name not in VERTEX_COLUMNS]
    return [row | {"track_id": None, "source": None} for row in table.select(names).to_pylist()]


class SequenceRows:
    """Rows of a sequence, to which filled frames and the columns of hands are added."""

    def __init__(self, rows: list[dict[str, Any]], frame: NDArray[np.int64]) -> None:
        """Start with rows (n,); `frame` (n,) is the index of each among the sequence's frames."""
        self.rows = rows
        self._hand_rows: list[int] = []
        self._columns: list[dict[str, Any]] = []
        self._meshes: list[UnchangedMeshes | SmoothedMeshes] = []
        self._frame = frame.tolist()
        self._of_frame: dict[int, list[int]] = {}
        for row, at in enumerate(self._frame):
            self._of_frame.setdefault(at, []).append(row)

    def readable_frames(self) -> NDArray[np.bool_]:
        """Return whether each frame (T,) has a readable photo."""
        return np.array(
            [
                any(self.rows[row]["status"] in ("ok", "no_hand") for row in self._of_frame[at])
                for at in range(len(self._of_frame))
            ]
        )

    def fill(self, frame: int, like: dict[str, Any]) -> int:
        """Add a row for a hand in a frame without its label; return its index. Its photo is `like` another row's."""
        here = self._of_frame[int(frame)]
        base = self.rows[here[0]]
        made = {"status": "ok", "reason": None, "error": None, "box_source": "track", "detection_score": None}
        made |= {name: base[name] or like[name] for name in ("width", "height")}
        made |= {"checkpoint": like["checkpoint"]}
        empty = next((row for row in here if self.rows[row]["status"] == "no_hand"), None)
        if empty is not None:
            index = max(self.rows[empty]["hand_index"], 0)
            self.rows[empty] |= made | {"hand_index": index}
            return empty
        index = 1 + max(self.rows[row]["hand_index"] for row in here)
        self.rows.append(base | made | {"hand_index": index, "duplicate": False, "track_id": None})
        self._frame.append(int(frame))
        here.append(len(self.rows) - 1)
        return len(self.rows) - 1

    def add(self, rows: list[int], columns: dict[str, Any], meshes: UnchangedMeshes | SmoothedMeshes) -> None:
        """Add the columns of the hands in some rows, and those per vertex."""
        self._hand_rows += rows
        self._columns.append(columns)
        self._meshes.append(meshes)

    def finish(self, as_they_are: bool = False, faces: NDArray[np.integer] | None = None) -> TrackedRows:
        """Return all rows, by frame unless `as_they_are`; with `faces` (F, 3), hands of a photo are compared."""
        order = list(range(len(self.rows)))
        if not as_they_are:
            order.sort(key=lambda row: (self._frame[row], self.rows[row]["hand_index"]))
        index = np.empty(len(self.rows), np.int64)
        index[order] = np.arange(len(self.rows))
        return TrackedRows(
            [self.rows[row] for row in order],
            index[self._hand_rows],
            joined_columns(self._columns),
            self._meshes,
            np.array([self._frame[row] for row in order], np.int64),
            faces,
        )
