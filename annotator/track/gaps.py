"""Frames in which a track has no hand of its own: which of them are filled, and where the track stands still."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def to_fill(own: NDArray[np.int64], fillable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the frames between a track's first and last (`own`, ascending) that it fills.

    A gap is no longer than association lets it be. `fillable` (T,) marks frames with a row to fill: one that could
    not be read has none.
    """
    inside = np.arange(own[0], own[-1] + 1)
    missing = np.setdiff1d(inside, own)
    return missing[fillable[missing]]


def hold_ends(values: Floats, observed: NDArray[np.bool_]) -> Floats:
    """Return values (T, ...) that stand still before the first observed time and after the last.

    Beyond them a constant velocity is a guess that grows without bound.
    """
    seen = np.flatnonzero(observed)
    held: Floats = values[np.clip(np.arange(len(values)), seen[0], seen[-1])]
    return held
