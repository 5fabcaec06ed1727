"""21 landmarks of hands in a photo: the input of a fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator import coordinates

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of B hands, FreiHAND's joint order.

    `joints2d_px` and `depth_px` share a unit, photo pixels, so that the 63 numbers of a hand are a weak-perspective
    view of it. Depth grows away from the camera. It is relative: adding a constant to a hand's depths has no effect.
    """

    joints2d_px: Floats  # (B, 21, 2) photo pixels, x right, y down; NaN where unknown
    depth_px: Floats  # (B, 21), NaN where unknown
    is_right: NDArray[np.bool_]  # (B,)

    def __post_init__(self) -> None:
        count = len(self.joints2d_px)
        shapes = {"joints2d_px": (count, 21, 2), "depth_px": (count, 21), "is_right": (count,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")

    def __len__(self) -> int:
        return len(self.joints2d_px)

    def __getitem__(self, hands: slice | NDArray[np.generic]) -> Landmarks:
        return Landmarks(self.joints2d_px[hands], self.depth_px[hands], self.is_right[hands])

    def without_depth(self) -> Landmarks:
        """Return the same landmarks with unknown depth."""
        return Landmarks(self.joints2d_px, np.full_like(self.depth_px, np.nan), self.is_right)

    def as_right_hands(self) -> Floats:
        """Return the landmarks (B, 21, 3), mirrored for left hands: x changes sign."""
        points = np.concatenate([self.joints2d_px, self.depth_px[..., None]], -1)
        return np.where(self.is_right[:, None, None], points, coordinates.mirror_points(points))
