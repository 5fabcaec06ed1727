"""The rows of one sequence, tracked: hands joined, smoothed, gaps filled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from annotator.hand.layer import HandLayer
from annotator.labels.arrays import joined_columns
from annotator.labels.hand_length import hand_lengths_mm
from annotator.track.association import Hands, track_ids
from annotator.track.columns import COLUMNS_OF_EVERY_TRACK, HAND_COLUMNS, columns_of_hands, picked_columns
from annotator.track.frames import frame_times
from annotator.track.gaps import frames_to_fill
from annotator.track.length import resized, track_lengths
from annotator.track.mesh import track_meshes
from annotator.track.motion import smoothed_motion
from annotator.track.motion_columns import labels_motion, track_columns
from annotator.track.shape import PERSON, people_of, shapes_of_people
from annotator.track.side import right_scores, side_of
from annotator.track.tables import SmoothedMeshes, TrackedRows, UnchangedMeshes
from annotator.track.vertex_columns import VERTEX_COLUMNS, VertexRows
from annotator.track.views import are_usable, views_of

Floats = NDArray[np.floating]

#: Values of `source` in a row of a track: smoothed with a label of its own, or interpolated from other frames.
LABEL, INTERPOLATED = "label", "interpolated"


def copied_rows(table: pa.Table, vertex_rows: VertexRows) -> TrackedRows:
    """Return rows that are of no sequence as they are; see `track_sequence`."""
    out = _Rows(_rows(table), np.arange(len(table)))
    is_hand = np.flatnonzero(_is_hand(table))
    if len(is_hand):
        columns = columns_of_hands(table.take(is_hand))
        std_mm = columns.pop("vertex_std_mm")
        out.add(
            is_hand.tolist(),
            columns,
            UnchangedMeshes(vertex_rows, is_hand, vertex_rows.without_gaps(is_hand), std_mm),
        )
    return out.finish(as_they_are=True)


def track_sequence(
    table: pa.Table, vertex_rows: VertexRows, layer: HandLayer, max_gap: int, one_person: bool = False
) -> TrackedRows:
    """Track the rows of one sequence.

    Args:
        table: its rows, without the per-vertex columns.
        vertex_rows: the per-vertex columns of the same rows.
        layer: of the labels' hand model.
        max_gap: maximum missing frames of a hand.
        one_person: all hands are of one person, and so of one shape and length.

    Raises:
        UserError: frames can't be brought into an order, or the lens of one is not known.
    """
    number, time_s = frame_times(table)
    order = np.argsort(number, kind="stable")
    table, number, time_s = table.take(order), number[order], time_s[order]
    _, first_row, frame = np.unique(number, return_index=True, return_inverse=True)
    time_s = time_s[first_row]
    is_hand = _is_hand(table)
    out = _Rows([row | {"penetration_mm": None} for row in _rows(table)], frame)
    if not is_hand.any():
        return out.finish(as_they_are=True)
    labelled = table.filter(pa.array(is_hand))
    columns = columns_of_hands(labelled)
    std_mm = columns.pop("vertex_std_mm")
    label_rows = np.flatnonzero(is_hand)
    places = order[label_rows]  # in `vertex_rows`
    whole = vertex_rows.without_gaps(places)
    side_score = np.asarray(labelled["side_score"].cast(pa.float64()).fill_null(np.nan))
    hands = Hands(
        frame=frame[label_rows],
        joints2d_px=columns["joints2d_px"],
        box_xyxy=columns["box_xyxy"],
        right=right_scores(columns["is_right"], side_score),
        betas=columns["betas"],
        rgb=vertex_rows.rgb[places],
    )
    views = views_of(labelled, columns)
    usable = _are_finite(columns) & vertex_rows.is_finite[places] & are_usable(views)
    ids = np.full(len(hands), -1)
    ids[usable] = track_ids(hands[usable], time_s, max_gap)
    if not usable.all():  # a label that is not a number stays as it is, in no track
        left = np.flatnonzero(~usable)
        kept = UnchangedMeshes(vertex_rows, places[left], whole, None if std_mm is None else std_mm[left])
        out.add(
            label_rows[left].tolist(), _with_track_columns(picked_columns(columns, left), len(left)), kept
        )
    tracks = [np.flatnonzero(ids == track) for track in range(int(ids.max()) + 1)]
    sides = [side_of(columns["is_right"][own], side_score[own]) for own in tracks]
    person = labelled[PERSON].to_pylist() if PERSON in labelled.column_names else None
    of_side = [
        own[columns["is_right"][own] == side.is_right] for own, side in zip(tracks, sides, strict=True)
    ]
    shapes = shapes_of_people(columns, of_side, people_of(person, tracks, one_person))
    for track, (own, side, shape) in enumerate(zip(tracks, sides, shapes, strict=True)):
        filled = frames_to_fill(hands.frame[own], out.readable_frames())
        at = np.concatenate([hands.frame[own], filled])
        rows = np.concatenate([own, np.full(len(filled), -1)])[np.argsort(at, kind="stable")]
        at = np.sort(at)
        observed = (rows >= 0) & (columns["is_right"][rows] == side.is_right)
        nearest = _nearest(time_s[at], time_s[hands.frame[own]], own)
        labels = labels_motion(columns, views, rows)
        betas = None if shape is None else shape.betas
        motion, path = smoothed_motion(layer, labels, time_s[at], observed, side.is_right, betas)
        length_mm, length_std_mm = track_lengths(columns, nearest, motion, None if path is None else shape)
        if path is not None:
            factors = length_mm / np.maximum(hand_lengths_mm(motion.joints3d_mm), 1e-3)
            motion, path = resized(motion, factors), replace(path, size=factors)
        made = [
            int(label_rows[row]) if row >= 0 else out.fill(f, out.rows[label_rows[near]])
            for row, f, near in zip(rows, at, nearest, strict=True)
        ]
        for row, is_own in zip(made, observed, strict=True):
            out.rows[row] |= {"track_id": track, "source": LABEL if is_own else INTERPOLATED}
            out.rows[row]["side_score"] = side.score
        labelled_at = np.where(rows >= 0, places[rows], -1)
        meshes = None if path is None else partial(track_meshes, layer, path, vertex_rows, labelled_at)
        out.add(
            made,
            track_columns(columns, views, rows, nearest, motion, side.is_right, length_std_mm),
            SmoothedMeshes(vertex_rows, places[nearest], whole, meshes),
        )
    return out.finish(faces=layer.faces.numpy())


def _with_track_columns(columns: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the columns of hands in no track; NaN where older labels lack a column that tracks have."""
    lacking = [name for name in COLUMNS_OF_EVERY_TRACK if columns[name] is None]
    return columns | {
        name: np.full((count, 3) if name == "cam_t_std_mm" else count, np.nan) for name in lacking
    }


def _are_finite(columns: dict[str, Any]) -> NDArray[np.bool_]:
    """Return which hands (n,) are numbers throughout."""
    needed = ("joints3d_mm", "joints3d_std_mm", "joints2d_px", "pose", "betas", "box_xyxy")
    finite = [np.isfinite(columns[name]).reshape(len(columns[name]), -1).all(1) for name in needed]
    usable: NDArray[np.bool_] = np.logical_and.reduce(finite)
    return usable


def _nearest(time_s: Floats, own_s: Floats, own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return of a track's labels (rows `own`) the one nearest in time to each of its frames (T,)."""
    after = np.searchsorted(own_s, time_s).clip(0, len(own) - 1)
    before = (after - 1).clip(0)
    nearer = np.where(time_s - own_s[before] < own_s[after] - time_s, before, after)
    return own[nearer]


def _is_hand(table: pa.Table) -> NDArray[np.bool_]:
    return np.asarray(pc.equal(table["status"], "ok").fill_null(False)) & np.asarray(table["pose"].is_valid())


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    names = [name for name in table.column_names if name not in HAND_COLUMNS and name not in VERTEX_COLUMNS]
    return [row | {"track_id": None, "source": None} for row in table.select(names).to_pylist()]


class _Rows:
    """Rows of a sequence, to which filled frames are added."""

    def __init__(self, rows: list[dict[str, Any]], frame: NDArray[np.int64]) -> None:
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
        place = np.empty(len(self.rows), np.int64)
        place[order] = np.arange(len(self.rows))
        return TrackedRows(
            [self.rows[row] for row in order],
            place[self._hand_rows],
            joined_columns(self._columns),
            self._meshes,
            np.array([self._frame[row] for row in order], np.int64),
            faces,
        )
