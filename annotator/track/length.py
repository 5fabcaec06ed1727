"""The length of a smoothed hand: the given one, its person's, or its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.labels.hand_length import hand_length_stds_mm, hand_lengths_mm
from annotator.track.columns import LENGTHS
from annotator.track.motion import Motion
from annotator.track.shape import PersonShape

Floats = NDArray[np.floating]


def track_lengths(
    columns: dict[str, Any], nearest: NDArray[np.int64], motion: Motion, shape: PersonShape | None
) -> tuple[Floats, Floats]:
    """Return the lengths (T,) of a smoothed hand and their std: given ones, its person's, or its own."""
    own_mm = hand_lengths_mm(motion.joints3d_mm)
    own_std_mm = hand_length_stds_mm(motion.joints3d_mm, motion.joints3d_std_mm)
    if shape is not None and shape.length_mm is not None:
        own_mm, own_std_mm = (
            np.full(len(nearest), shape.length_mm),
            np.full(len(nearest), shape.length_std_mm),
        )
    length, std = (columns[name] for name in LENGTHS)
    if length is None or std is None:
        return own_mm, own_std_mm
    is_given = std[nearest] == 0
    return np.where(is_given, length[nearest], own_mm), np.where(is_given, 0, own_std_mm)


def resized(motion: Motion, factors: Floats) -> Motion:
    """Return a track of another size (T,) that looks the same in the photo."""
    size = factors[:, None, None].astype(motion.joints3d_mm.dtype)
    return replace(
        motion,
        joints3d_mm=motion.joints3d_mm * size,
        joints3d_std_mm=motion.joints3d_std_mm * size,
        scale_px=motion.scale_px / factors,
    )
