"""Frames of a track without a label: gaps to fill, and constant ends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def frames_to_fill(own: NDArray[np.int64], is_readable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the frames between a track's first and last (`own`, ascending) that it fills.

    Association has already limited the length of gaps. `is_readable` (T,) marks frames with a readable photo, whose
    row can be filled.
    """
    inside = np.arange(own[0], own[-1] + 1)
    missing = np.setdiff1d(inside, own)
    return missing[is_readable[missing]]


def hold_constant_ends(values: Floats, observed: NDArray[np.bool_]) -> Floats:
    """Return values (T, ...) that are constant before the first observed time and after the last.

    Beyond them a constant velocity is a guess that grows without bound.
    """
    held: Floats = values[held_frames(observed)]
    return held


def held_frames(observed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the frame (T,) whose values each frame has: its own, or that of the nearest end."""
    seen = np.flatnonzero(observed)
    return np.clip(np.arange(len(observed)), seen[0], seen[-1])
