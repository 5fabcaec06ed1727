"""Assign the hands of each frame to tracks, at the lowest total cost."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from annotator.photos.crops import box_overlaps

Floats = NDArray[np.floating]

#: Weights of a cost's terms: joints are in sizes of the hand, the rest in 0..1.
_JOINTS, _OVERLAP, _SIDE, _SHAPE = 1.0, 0.5, 0.5, 0.2

#: Maximum distance of joints from a track's predicted position, in sizes of the hand: after one frame, added per
#: further frame, and in total. A hand farther off begins a track of its own, so that a cut ends all tracks.
_REACH, _REACH_PER_FRAME, _MAX_REACH = 0.6, 0.1, 1.5

#: Overlap of boxes above which a hand may continue a track at any distance of its joints.
_MIN_OVERLAP = 0.4

#: Frames for which a track's velocity is extrapolated.
_VELOCITY_FRAMES = 3

#: Distance of two shapes, per coefficient, that costs all of `_SHAPE`.
_SHAPES_APART = 1.5

#: Minimum jump in a cut: of a hand's mean colour, levels of a channel, and of its joints about their centre, sizes of
#: the hand. Only both together mean a cut. Colours drift, so that the first grows with the root of the frames between.
#: On synthetic sequences colours jump by up to 16 levels between frames, by 38 behind another hand, and by 49 (median)
#: in cuts.
_CUT_LEVELS, _CUT_JOINTS = 30.0, 0.1

_FORBIDDEN = 1e6


@dataclass(frozen=True, eq=False)
class Hands:
    """The n hands of a sequence that are labelled, by frame."""

    frame: NDArray[np.int64]  # (n,) index among the sequence's frames, ascending
    joints2d_px: Floats  # (n, 21, 2)
    box_xyxy: Floats  # (n, 4)
    right: Floats  # (n,) probability of a right hand
    betas: Floats  # (n, 10)
    rgb: Floats  # (n, 3) mean colour of the visible skin, 0 to 255; NaN where it is not known

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, rows: Any) -> Hands:
        return Hands(*(getattr(self, one.name)[rows] for one in fields(self)))


@dataclass(eq=False)
class _ActiveTrack:
    """A track that may continue."""

    number: int
    last: int  # row of its last hand
    log_odds: float  # of a right hand
    velocity_px: Floats = field(default_factory=lambda: np.zeros(2))  # per second


def track_ids(hands: Hands, time_s: Floats, max_gap: int) -> NDArray[np.int64]:
    """Return the track (n,) of each hand, numbered by first appearance.

    Args:
        hands: the labelled hands. time_s: (T,) of all frames, increasing.
        max_gap: maximum missing frames of a hand, of the median length.
    """
    ids = np.full(len(hands), -1)
    step_s = float(np.median(np.diff(time_s))) if len(time_s) > 1 else 1.0
    tracks: list[_ActiveTrack] = []
    count = 0
    for frame in np.unique(hands.frame):
        rows = np.flatnonzero(hands.frame == frame)
        now = time_s[frame]
        tracks = [t for t in tracks if now - time_s[hands.frame[t.last]] < (max_gap + 1.5) * step_s]
        pairs = _assigned(tracks, hands, rows, time_s, step_s)
        if _is_cut(
            hands, pairs or [(track, row) for track in tracks for row in rows.tolist()], time_s, step_s
        ):
            tracks, pairs = [], []
        for track, row in pairs:
            ids[row] = track.number
            _extend(track, hands, row, time_s)
        for row in rows[ids[rows] < 0]:
            ids[row] = count
            tracks.append(_ActiveTrack(count, row, float(log_odds(hands.right[row]))))
            count += 1
    return ids


def log_odds(right: Floats) -> Floats:
    """Return the log odds of probabilities of a right hand; none is taken for more than 99 % sure."""
    clipped = np.clip(right, 0.01, 0.99)
    odds: Floats = np.log(clipped / (1 - clipped))
    return odds


def _assigned(
    tracks: list[_ActiveTrack], hands: Hands, rows: NDArray[np.int64], time_s: Floats, step_s: float
) -> list[tuple[_ActiveTrack, int]]:
    if not tracks:
        return []
    costs = np.stack([_costs(track, hands, rows, time_s, step_s) for track in tracks])
    pairs = zip(*linear_sum_assignment(costs), strict=True)
    return [(tracks[i], int(rows[j])) for i, j in pairs if costs[i, j] < _FORBIDDEN]


def _costs(
    track: _ActiveTrack, hands: Hands, rows: NDArray[np.int64], time_s: Floats, step_s: float
) -> Floats:
    """Return the cost (m,) of assigning each hand to a track."""
    last = track.last
    away_s = float(time_s[hands.frame[rows[0]]] - time_s[hands.frame[last]])
    frames = away_s / step_s
    moved = track.velocity_px * min(away_s, _VELOCITY_FRAMES * step_s)
    size = np.maximum(_size(hands.box_xyxy[rows]), _size(hands.box_xyxy[last]))
    off = np.linalg.norm(hands.joints2d_px[rows] - hands.joints2d_px[last] - moved, axis=-1).mean(1) / size
    overlap = box_overlaps(hands.box_xyxy[last] + np.tile(moved, 2), hands.box_xyxy[rows])
    right = 1 / (1 + np.exp(-np.clip(track.log_odds, -5, 5)))
    other_side = right * (1 - hands.right[rows]) + (1 - right) * hands.right[rows]
    apart = np.sqrt(np.square(hands.betas[rows] - hands.betas[last]).mean(1)) / _SHAPES_APART
    cost = _JOINTS * off + _OVERLAP * (1 - overlap) + _SIDE * other_side + _SHAPE * apart.clip(0, 1)
    reach = min(_REACH + _REACH_PER_FRAME * max(frames - 1, 0), _MAX_REACH)
    return np.where((off < reach) | (overlap > _MIN_OVERLAP), cost, _FORBIDDEN)


def _is_cut(hands: Hands, pairs: list[tuple[_ActiveTrack, int]], time_s: Floats, step_s: float) -> bool:
    """Return whether all pairs of a track and a hand differ in colour and in pose: a new shot shows the hands.

    Another hand in front changes one hand in the same way, but never both at once.
    """
    if not pairs:
        return False
    last, rows = np.array([track.last for track, _ in pairs]), np.array([row for _, row in pairs])
    frames = (time_s[hands.frame[rows]] - time_s[hands.frame[last]]) / step_s
    levels = np.abs(hands.rgb[rows] - hands.rgb[last]).max(1)
    size = np.maximum(_size(hands.box_xyxy[rows]), _size(hands.box_xyxy[last]))
    moved = hands.joints2d_px[rows] - hands.joints2d_px[last]
    off = np.linalg.norm(moved - moved.mean(1, keepdims=True), axis=-1).mean(1) / size
    return bool(((levels > _CUT_LEVELS * np.sqrt(frames)) & (off > _CUT_JOINTS)).all())


def _extend(track: _ActiveTrack, hands: Hands, row: int, time_s: Floats) -> None:
    step_s = float(time_s[hands.frame[row]] - time_s[hands.frame[track.last]])
    moved = hands.joints2d_px[row].mean(0) - hands.joints2d_px[track.last].mean(0)
    track.velocity_px = 0.5 * track.velocity_px + 0.5 * moved / step_s
    track.log_odds += float(log_odds(hands.right[row]))
    track.last = row


def _size(boxes: Floats) -> Floats:
    """Return the longer side of boxes (..., 4)."""
    longer: Floats = np.maximum(boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1])
    return longer
