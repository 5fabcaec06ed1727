"""Tracks of a label set of `amvur track`: the rows of a sequence together, in the order of its frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.export.exported import Exported
from annotator.export.exported_labels import LabelsToExport
from annotator.track.frames import FRAME, TIME, frame_times

#: The columns that identify a track and order its frames.
TRACK_COLUMNS = (
    "image_uri",
    "image_id",
    "duplicate",
    "frame_index",
    "frame_time_s",
    "is_right",
    "track_id",
    "source",
)
_OF_LISTS = ("sequence", FRAME, TIME)


@dataclass(frozen=True, eq=False)
class TrackedSequence:
    """The tracked hands of a video, or of a list's sequence, ordered by frame."""

    name: str
    rows: pa.Table  # (n rows) the columns that were read
    frame: NDArray[np.float64]  # (n,) frame numbers
    time_s: NDArray[np.float64]  # (n,)

    def tracks(self) -> Iterator[Track]:
        """Yield each track's frames."""
        ids = np.asarray(self.rows["track_id"])
        for track_id in np.unique(ids):
            own = np.flatnonzero(ids == track_id)
            # A frame that is listed twice is one frame.
            _, first = np.unique(self.frame[own], return_index=True)
            yield Track(self, int(track_id), own[first])


@dataclass(frozen=True, eq=False)
class Track:
    """One hand over the frames of a sequence."""

    sequence: TrackedSequence
    track_id: int
    own: NDArray[np.int64]  # (T,) its rows among the sequence's

    @property
    def rows(self) -> pa.Table:
        """Its rows (T)."""
        return self.sequence.rows.take(self.own)

    @property
    def time_s(self) -> NDArray[np.float64]:
        """The time (T,) of each frame, increasing."""
        times: NDArray[np.float64] = self.sequence.time_s[self.own]
        return times

    @property
    def is_right(self) -> bool:
        """Its side."""
        return bool(self.sequence.rows["is_right"][int(self.own[0])].as_py())


def columns_to_read(labels: LabelsToExport, to: str, *names: str) -> list[str]:
    """Return the columns to read for tracks: `TRACK_COLUMNS`, and further ones that exist.

    Raises:
        UserError: the labels hold no tracks; the message names `to`.
    """
    if "track_id" not in labels.columns:
        raise UserError(
            f"'{labels.place}' holds no tracks, which {to} needs: give a label set of `amvur track`"
        )
    return labels.present(*dict.fromkeys((*TRACK_COLUMNS, *_OF_LISTS, *names)))


def sequences(
    labels: LabelsToExport, batches: Iterator[pa.Table], exported: Exported
) -> Iterator[TrackedSequence]:
    """Yield each sequence; count rows of no track in `exported`. One sequence is in memory at a time.

    Raises:
        UserError: the rows of a sequence are not adjacent, or its frames have no order.
    """
    seen: set[str] = set()
    for name, parts in groupby(_runs(batches, exported), key=lambda run: run[0]):
        if name in seen:
            raise UserError(
                f"the rows of '{name}' are not adjacent in '{labels.place}': give the label set of `amvur track`, "
                "or one filtered without --sort"
            )
        seen.add(name)
        rows = pa.concat_tables([table for _, table in parts]).combine_chunks()
        number, time_s = frame_times(rows)
        order = np.argsort(number, kind="stable")
        yield TrackedSequence(name, rows.take(order), number[order], time_s[order])


def _runs(batches: Iterator[pa.Table], exported: Exported) -> Iterator[tuple[str, pa.Table]]:
    """Yield neighbouring rows of one sequence, and its name."""
    for table in batches:
        tracked = table.filter(table["track_id"].is_valid())
        if lost := len(table) - len(tracked):
            exported.left_out["hand in no track"] += lost
        names = [_name(row) for row in tracked.select(_naming(tracked)).to_pylist()]
        start = 0
        for name, group in groupby(names):
            count = len(list(group))
            yield name, tracked.slice(start, count)
            start += count


def _naming(table: pa.Table) -> list[str]:
    return [name for name in ("image_uri", "sequence") if name in table.column_names]


def _name(row: dict[str, Any]) -> str:
    return str(row["image_uri"] if row.get("sequence") is None else row["sequence"])
