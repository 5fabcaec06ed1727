"""The rows of one sequence, tracked: hands joined, smoothed, gaps filled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from annotator.hand.layer import HandLayer
from annotator.labels.hand_length import hand_lengths_mm
from annotator.labels.side import right_scores
from annotator.track.association import Hands, track_ids
from annotator.track.columns import COLUMNS_OF_EVERY_TRACK, columns_of_hands, picked_columns
from annotator.track.frames import frame_times
from annotator.track.gaps import frames_to_fill
from annotator.track.length import resized, track_lengths
from annotator.track.mesh import MeshPath, track_meshes
from annotator.track.motion import Motion, smoothed_motion
from annotator.track.motion_columns import labels_motion, track_columns
from annotator.track.rows import SequenceRows, rows_without_arrays
from annotator.track.shape import PERSON, PersonShape, people_of, shapes_of_people
from annotator.track.side import TrackSide, side_of
from annotator.track.tables import SmoothedMeshes, TrackedRows, UnchangedMeshes
from annotator.track.vertex_columns import VertexRows
from annotator.track.views import are_usable, views_of

Floats = NDArray[np.floating]

#: Values of `source` in a row of a track: smoothed with a label of its own, or interpolated from other frames.
LABEL, INTERPOLATED = "label", "interpolated"


def copied_rows(table: pa.Table, vertex_rows: VertexRows) -> TrackedRows:
    """Return rows that are of no sequence as they are; see `track_sequence`."""
    out = SequenceRows(rows_without_arrays(table), np.arange(len(table)))
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
    out = SequenceRows([row | {"penetration_mm": None} for row in rows_without_arrays(table)], frame)
    rows = np.flatnonzero(_is_hand(table))
    if not len(rows):
        return out.finish(as_they_are=True)
    labels = _labels_of(table.take(rows), rows, frame[rows], vertex_rows, order[rows])
    ids = _join(labels, time_s, max_gap)
    _keep_as_they_are(labels, np.flatnonzero(ids < 0), out)
    for track_id, track in enumerate(_tracks_of(labels, ids, one_person)):
        frames = _frames_of(track, labels, time_s, out)
        smoothed = _smooth(track, frames, labels, layer)
        made = _mark_rows(track_id, track, frames, labels, out)
        _add_hands(made, track, frames, smoothed, labels, layer, out)
    return out.finish(faces=layer.faces.numpy())


@dataclass(frozen=True, eq=False)
class _Labels:
    """The n labelled hands of a sequence, by frame."""

    columns: dict[str, Any]  # `HAND_COLUMNS` without `vertex_std_mm`
    vertex_std_mm: Floats | None  # (n,)
    side_score: Floats  # (n,) NaN where the side was given
    person: list[Any] | None  # (n,) names of the owners; None without that column
    views: NDArray[np.object_]  # (n,) behind a lens, None for others
    rows: NDArray[np.int64]  # (n,) index among the sequence's rows
    frame: NDArray[np.int64]  # (n,) index among the sequence's frames, ascending
    vertex_rows: VertexRows  # of all rows
    vertex_indices: NDArray[np.int64]  # (n,) index in `vertex_rows`
    whole: set[str]  # per-vertex columns in which none is null


def _labels_of(
    table: pa.Table,
    rows: NDArray[np.int64],
    frame: NDArray[np.int64],
    vertex_rows: VertexRows,
    vertex_indices: NDArray[np.int64],
) -> _Labels:
    columns = columns_of_hands(table)
    return _Labels(
        columns=columns,
        vertex_std_mm=columns.pop("vertex_std_mm"),
        side_score=np.asarray(table["side_score"].cast(pa.float64()).fill_null(np.nan)),
        person=table[PERSON].to_pylist() if PERSON in table.column_names else None,
        views=views_of(table, columns),
        rows=rows,
        frame=frame,
        vertex_rows=vertex_rows,
        vertex_indices=vertex_indices,
        whole=vertex_rows.without_gaps(vertex_indices),
    )


def _join(labels: _Labels, time_s: Floats, max_gap: int) -> NDArray[np.int64]:
    """Return the track (n,) of each hand; -1 for a label that is not a number, which is in no track."""
    columns, vertex_rows, vertex_indices = labels.columns, labels.vertex_rows, labels.vertex_indices
    hands = Hands(
        frame=labels.frame,
        joints2d_px=columns["joints2d_px"],
        box_xyxy=columns["box_xyxy"],
        right=right_scores(columns["is_right"], labels.side_score),
        betas=columns["betas"],
        rgb=vertex_rows.rgb[vertex_indices],
    )
    usable = _are_finite(columns) & vertex_rows.is_finite[vertex_indices] & are_usable(labels.views)
    ids = np.full(len(hands), -1)
    ids[usable] = track_ids(hands[usable], time_s, max_gap)
    return ids


def _keep_as_they_are(labels: _Labels, hands: NDArray[np.int64], out: SequenceRows) -> None:
    """Add the labels of hands in no track."""
    if not len(hands):
        return
    std_mm = labels.vertex_std_mm
    out.add(
        labels.rows[hands].tolist(),
        _with_track_columns(picked_columns(labels.columns, hands), len(hands)),
        UnchangedMeshes(
            labels.vertex_rows,
            labels.vertex_indices[hands],
            labels.whole,
            None if std_mm is None else std_mm[hands],
        ),
    )


class _Track(NamedTuple):
    """Hands that were joined."""

    own: NDArray[np.int64]  # indices of its labels, by frame
    side: TrackSide
    shape: PersonShape | None  # of its person; None where the person is not known


def _tracks_of(labels: _Labels, ids: NDArray[np.int64], one_person: bool) -> list[_Track]:
    """Return the tracks with their sides and shapes."""
    is_right = labels.columns["is_right"]
    tracks = [np.flatnonzero(ids == track) for track in range(int(ids.max()) + 1)]
    sides = [side_of(is_right[own], labels.side_score[own]) for own in tracks]
    of_side = [own[is_right[own] == side.is_right] for own, side in zip(tracks, sides, strict=True)]
    shapes = shapes_of_people(labels.columns, of_side, people_of(labels.person, tracks, one_person))
    return [_Track(*track) for track in zip(tracks, sides, shapes, strict=True)]


class _Frames(NamedTuple):
    """The T frames of a track: those of its labels, and those that it fills."""

    at: NDArray[np.int64]  # (T,) index among the sequence's frames, ascending
    time_s: Floats  # (T,)
    label: NDArray[np.int64]  # (T,) index of its label, -1 where there is none
    nearest: NDArray[np.int64]  # (T,) index of the track's label that is nearest in time
    observed: NDArray[np.bool_]  # (T,) whether its label is of the track's side


def _frames_of(track: _Track, labels: _Labels, time_s: Floats, out: SequenceRows) -> _Frames:
    own, own_at = track.own, labels.frame[track.own]
    filled = frames_to_fill(own_at, out.readable_frames())
    at = np.concatenate([own_at, filled])
    label = np.concatenate([own, np.full(len(filled), -1)])[np.argsort(at, kind="stable")]
    at = np.sort(at)
    nearest = _nearest(time_s[at], time_s[own_at], own)
    observed = (label >= 0) & (labels.columns["is_right"][label] == track.side.is_right)
    return _Frames(at, time_s[at], label, nearest, observed)


class _Smoothed(NamedTuple):
    """A smoothed track."""

    motion: Motion
    path: MeshPath | None  # None for a single frame, which stays as it is
    length_std_mm: Floats  # (T,)


def _smooth(track: _Track, frames: _Frames, labels: _Labels, layer: HandLayer) -> _Smoothed:
    """Smooth a track, and give it its length."""
    motion, path = smoothed_motion(
        layer,
        labels_motion(labels.columns, labels.views, frames.label),
        frames.time_s,
        frames.observed,
        track.side.is_right,
        None if track.shape is None else track.shape.betas,
    )
    shape = None if path is None else track.shape
    length_mm, length_std_mm = track_lengths(labels.columns, frames.nearest, motion, shape)
    if path is not None:
        factors = length_mm / np.maximum(hand_lengths_mm(motion.joints3d_mm), 1e-3)
        motion, path = resized(motion, factors), replace(path, size=factors)
    return _Smoothed(motion, path, length_std_mm)


def _mark_rows(
    track_id: int, track: _Track, frames: _Frames, labels: _Labels, out: SequenceRows
) -> list[int]:
    """Write track, source and side into the rows of its frames, of which some are added; return their indices."""
    made = [
        int(labels.rows[label]) if label >= 0 else out.fill(at, out.rows[labels.rows[near]])
        for label, at, near in zip(frames.label, frames.at, frames.nearest, strict=True)
    ]
    for row, is_own in zip(made, frames.observed, strict=True):
        out.rows[row] |= {
            "track_id": track_id,
            "source": LABEL if is_own else INTERPOLATED,
            "side_score": track.side.score,
        }
    return made


def _add_hands(
    rows: list[int],
    track: _Track,
    frames: _Frames,
    smoothed: _Smoothed,
    labels: _Labels,
    layer: HandLayer,
    out: SequenceRows,
) -> None:
    """Add the columns of a smoothed track to its rows; meshes are made when the rows are written."""
    meshes = None
    if smoothed.path is not None:
        labelled_at = np.where(frames.label >= 0, labels.vertex_indices[frames.label], -1)
        meshes = partial(track_meshes, layer, smoothed.path, labels.vertex_rows, labelled_at)
    columns = track_columns(
        labels.columns,
        labels.views,
        frames.label,
        frames.nearest,
        smoothed.motion,
        track.side.is_right,
        smoothed.length_std_mm,
    )
    near = labels.vertex_indices[frames.nearest]
    out.add(rows, columns, SmoothedMeshes(labels.vertex_rows, near, labels.whole, meshes))


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
    """Return the track's label (one of rows `own`) that is nearest in time to each frame (T,)."""
    after = np.searchsorted(own_s, time_s).clip(0, len(own) - 1)
    before = (after - 1).clip(0)
    nearer = np.where(time_s - own_s[before] < own_s[after] - time_s, before, after)
    return own[nearer]


def _is_hand(table: pa.Table) -> NDArray[np.bool_]:
    return np.asarray(pc.equal(table["status"], "ok").fill_null(False)) & np.asarray(table["pose"].is_valid())
