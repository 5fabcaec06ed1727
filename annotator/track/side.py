"""One side per track: which hand it is, by all of its frames."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.labels.side import right_scores
from annotator.track.association import log_odds

Floats = NDArray[np.floating]


class TrackSide(NamedTuple):
    """The side of a track."""

    is_right: bool
    score: float | None  # mean probability of this side over frames; None where every frame's side was given


def side_of(is_right: NDArray[np.bool_], side_score: Floats) -> TrackSide:
    """Return the side with the larger sum of log odds over a track's n hands; of equal ones, that of most frames."""
    right = right_scores(is_right, side_score)
    total = float(log_odds(right).sum())
    chosen = total > 0 if abs(total) > 1e-9 else bool(is_right.mean() >= 0.5)
    if not (is_right == chosen).any():  # odds against all labels: there is nothing of that side to show
        chosen = not chosen
    if np.isnan(side_score).all():
        return TrackSide(chosen, None)
    mean = float(right.mean()) if chosen else float(1 - right.mean())
    return TrackSide(chosen, max(mean, 0.5))
