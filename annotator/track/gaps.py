"""Frames without a hand of the track: gaps to fill, and ends where the track stands still."""

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
    held: Floats = values[held_frames(observed)]
    return held


def held_frames(observed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the frame (T,) whose values each frame has: its own, or that of the nearest end."""
    seen = np.flatnonzero(observed)
    return np.clip(np.arange(len(observed)), seen[0], seen[-1])
