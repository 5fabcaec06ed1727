"""The square that a second look is cut along: around a hand's joints, upright, in the coordinates of the tight crop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from annotator.coordinates import axis_aligned, in_plane_matrix, upright_square
from annotator.model.checkpoint_file import WIDE
from annotator.photos.cut import resample

#: Side of the second look's square divided by the side of the 2D joints' box.
PADDING = 1.35

#: Minimum half-side of a square around joints, in half-sides of the tight crop; joints closer together are no hand.
SMALLEST = 0.1

#: Maximum difference between the square of a second look and that of its joints: in rotation, in size, and a shift in
#: half-sides. Beyond it, the look is repeated with the square of its joints.
MAX_ROTATION_RAD, MAX_RESIZE, MAX_SHIFT = math.radians(20), 1.35, 0.25


@dataclass
class Square:
    """B rotated squares in the coordinates of their tight crops, see `coordinates.in_plane_matrix`."""

    centre: Tensor  # (B, 2)
    half_side: Tensor  # (B,)
    rotation_rad: Tensor  # (B,)

    @staticmethod
    def around(joints2d: Tensor) -> Square:
        """Return the upright squares of 2D joints (B, 21, 2); the tight crop itself where joints are degenerate."""
        found = upright_square(joints2d.double().cpu().numpy(), PADDING)
        centre, half_side, rotation_rad = (torch.from_numpy(values).to(joints2d) for values in found)
        fine = (half_side >= SMALLEST) & (centre.abs() <= 1).all(-1)  # false where NaN
        return Square(
            torch.where(fine[:, None], centre, 0),
            torch.where(fine, half_side, 1).clamp_max(WIDE),  # the image ends there
            torch.where(fine, rotation_rad, 0),
        )

    @staticmethod
    def whole(images: Tensor, quarters: int) -> Square:
        """Return the tight crops of B images, rotated by `quarters` * 90 degrees."""
        middle = images.new_zeros(len(images), 2)
        side = torch.ones_like(middle[:, 0])
        return Square(middle, side, side * quarters * math.pi / 2)

    def __getitem__(self, rows: Tensor) -> Square:
        return Square(self.centre[rows], self.half_side[rows], self.rotation_rad[rows])

    def put(self, rows: Tensor, other: Square) -> None:
        """Replace these rows by those of `other`, in place."""
        self.centre[rows], self.half_side[rows] = other.centre, other.half_side
        self.rotation_rad[rows] = other.rotation_rad

    def in_plane_matrix(self) -> Tensor:
        """Return the rotations (B, 3, 3) from each square's axes to those of its tight crop."""
        return in_plane_matrix(self.rotation_rad, torch.zeros_like(self.rotation_rad, dtype=torch.bool))

    def to_tight(self, points: Tensor) -> Tensor:
        """Transform points (B, N, 2) from the squares to their tight crops."""
        return (
            axis_aligned(points, self.in_plane_matrix()) * self.half_side[:, None, None]
            + self.centre[:, None]
        )

    def cut(self, images: Tensor, size_px: int) -> Tensor:
        """Resample the squares (B, 3, size_px, size_px) from wide images (B, 3, S, S)."""
        mirrored = torch.zeros_like(self.rotation_rad, dtype=torch.bool)
        return resample(
            images, self.centre / WIDE, self.half_side / WIDE, self.rotation_rad, mirrored, size_px
        )

    def is_off(self, other: Square) -> Tensor:
        """Return where (B,) the other squares differ too much from these for one second look."""
        rotation = other.rotation_rad - self.rotation_rad
        resize = (other.half_side / self.half_side).log().abs()
        shift = (other.centre - self.centre).norm(dim=-1) / self.half_side
        return (
            (torch.cos(rotation) < math.cos(MAX_ROTATION_RAD))
            | (resize > math.log(MAX_RESIZE))
            | (shift > MAX_SHIFT)
        )
