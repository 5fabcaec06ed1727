"""Joint angles of a pose: the bend, spread and twist of every finger joint about the hand model's own axes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from annotator.hand import anatomy
from annotator.hand.model import FREIHAND_FROM_MANO, HandModel
from annotator.rotations import rotvec_to_rotmat


class JointAngles(nn.Module):
    """Read finger angles from rotations. No parameters.

    Angles are those of `annotator.hand.anatomy`, about the axes of the hand model's mean shape. Each joint is
    decomposed into three successive rotations: spread, twist, flexion; the thumb's saddle joint into spread, flexion,
    twist, as in `pose_from_angles`. The second rotation has the gimbal lock at a right angle. The order is chosen so
    that the lock lies far outside the limits of real hands.
    """

    outer: Tensor  # (5, 3, 3, 3) rows
    inner: Tensor  # (5, 3, 3, 3) columns
    offset: Tensor  # (5, 3) of the second rotation
    rest: Tensor  # (5, 3, 3)
    saddle: Tensor  # (5, 3, 1) bool
    order: Tensor  # (5, 3) indices of fingers and joints in MANO's order

    def __init__(self, hand: HandModel) -> None:
        super().__init__()
        axes = anatomy.joint_axes(anatomy.rest_joints(hand))
        # R = R(first, a) R(second, b) R(third, c), with `second` at right angles to both others.
        first, third = axes.spread.copy(), axes.flexion.copy()
        first[:, 1:] = np.cross(axes.twist[:, 1:], axes.flexion[:, 1:])
        first /= np.linalg.norm(first, axis=-1, keepdims=True)
        third[0, 0] = -axes.twist[0, 0]
        second = np.cross(third, first)
        second /= np.linalg.norm(second, axis=-1, keepdims=True)
        saddle = np.zeros((5, 3, 1), bool)
        saddle[0, 0] = True
        rest = np.zeros((5, 3, 3))
        rest[:, 0, 0], rest[:, :, 1] = axes.rest_angles[:, 0], axes.rest_angles[:, 1:]
        for name, array in {
            "outer": np.stack([second, np.cross(first, second), first], -2),
            "inner": np.stack([second, third, np.cross(second, third)], -1),
            "offset": np.arcsin((first * third).sum(-1)),
            "rest": np.radians(rest),
        }.items():
            self.register_buffer(name, torch.from_numpy(array).float(), persistent=False)
        order = torch.tensor(FREIHAND_FROM_MANO[1:]).view(5, 4)[:, :3]
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("saddle", torch.from_numpy(saddle), persistent=False)

    def angles(self, rotations: Tensor) -> Tensor:
        """Convert rotations (B, 16, 3, 3) in MANO's order to angles (B, 5, 3, 3) in radians; ignore the wrist.

        Axes: finger (thumb first), joint (from the palm), and spread, flexion, twist; 0 is a flat hand with parallel
        fingers. In a real hand, spread and twist of joints 2 and 3 are always 0, and so is the twist of the first
        joint. The thumb's twist is relative to the twist that its other two angles imply.
        """
        return self._read(rotations)[0]

    def _read(self, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """Return angles (B, 5, 3, 3) and their weights near gimbal lock (B, 5, 3, 3), 0 to 1."""
        matrices = self.outer @ rotations[:, self.order] @ self.inner
        # Of Rz(a) Rx(b) Ry(c) in the axes of `outer`, the second column and the last row give all three.
        ring = matrices[..., 0, 1].square() + matrices[..., 1, 1].square()  # cos(b)^2
        open_ring = ring > 1e-10
        cosine = ring.clamp_min(1e-10).sqrt()

        def angle(sine: Tensor, cosine: Tensor) -> Tensor:
            return torch.atan2(torch.where(open_ring, sine, 0.0), torch.where(open_ring, cosine, 1.0))

        a = angle(-matrices[..., 0, 1], matrices[..., 1, 1])
        b = torch.atan2(matrices[..., 2, 1], cosine) - self.offset
        c = angle(-matrices[..., 2, 0], matrices[..., 2, 2])
        # Relative to the flat hand, the thumb's own twist follows from its other two angles.
        per_flexion, per_spread = anatomy.THUMB_TWIST
        of_saddle = torch.stack([a, b, -c + per_flexion * b - per_spread * a], -1)
        angles = self.rest + torch.where(self.saddle, of_saddle, torch.stack([a, c, b], -1))
        weight = (2 * cosine).clamp_max(1.0)
        one = torch.ones_like(weight)
        of_saddle = torch.stack([weight, one, weight], -1)
        return angles, torch.where(self.saddle, of_saddle, torch.stack([weight, weight, one], -1))


def joint_angles_deg(hand: HandModel, pose: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the angles (n, 45), degrees, of poses (n, 48) as labels hold them; `ANGLE_NAMES` has their order.

    Poses of left hands are those of the mirrored right hand, so one angle means the same on both sides. NaN gives NaN.
    """
    reader = JointAngles(hand).double()
    rotvecs = torch.from_numpy(np.asarray(pose, np.float64)).view(-1, 16, 3)
    degrees: NDArray[np.float64] = np.degrees(reader.angles(rotvec_to_rotmat(rotvecs)).flatten(1).numpy())
    return np.where(np.isfinite(pose).all(1)[:, None], degrees, np.nan)
