"""Finger poses: a bank of plausible poses, and draws between its neighbours."""

from __future__ import annotations

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from torch import Tensor

from annotator.hand import anatomy, gestures, plausible_poses
from annotator.hand.model import FREIHAND_FROM_MANO, HandModel
from trainer.keyed_random import Draws

Floats = NDArray[np.floating]

#: Poses in the bank, drawn once by rejection; all others lie between near ones.
BANK = 6000

#: Share of the bank in which each finger is extended or bent independently, as in counting and signing.
COUNTING = 0.4

# Neighbours per pose that a draw may move to.
_NEIGHBOURS = 6
# Std of the noise on each angle, degrees: spread, then the three joints.
_JITTER_DEG = (1.2, 2.5, 2.5, 2.0)
# As in `plausible_poses.sample_angles`.
_MIN_APART, _MIN_HEIGHT, _MIN_THUMB_SUM = 0.12, 0.2, 62.0

# A bent finger: angles as in a fist.
_CURLED = np.array([[2, 70, 91, 41], [-2, 71, 92, 42], [-7, 71, 91, 41], [-12, 70, 84, 38]], float)
_SPREAD_CLOSED = np.array([2.0, -3.0, -8.0, -13.0])
_SPREAD_OPEN = np.array([17.0, 1.0, -13.0, -25.0])


class Poses:
    """Draw finger angles within `anatomy.LIMITS`, without fingers that intersect."""

    def __init__(self, hand: HandModel, seed: int, device: torch.device) -> None:
        rest = anatomy.rest_joints(hand)
        generator = np.random.default_rng([seed, 45])
        counting = round(BANK * COUNTING)
        bank = np.concatenate(
            [
                plausible_poses.sample_angles(rest, BANK - counting, generator),
                counting_angles(rest, counting, generator),
            ]
        )
        self.bank = torch.from_numpy(bank).float().to(device)
        self.limits = torch.from_numpy(anatomy.LIMITS).float().to(device)
        self.neighbours = _neighbours(self.bank.flatten(1))
        axes = anatomy.joint_axes(rest)
        self._flexion, self._spread, self._twist, self._rest = (
            torch.from_numpy(np.ascontiguousarray(a)).float().to(device)
            for a in (axes.flexion, axes.spread, axes.twist, axes.rest_angles)
        )

    def angles(self, draws: Draws) -> Tensor:
        """Draw anatomical angles (B, 5, 4) in degrees, see `annotator.hand.anatomy`."""
        start = (draws.uniform() * len(self.bank)).long()
        other = self.neighbours[start, (draws.uniform() * _NEIGHBOURS).long()]
        way = draws.uniform(1, 1) * 0.7
        angles = self.bank[start] * (1 - way) + self.bank[other] * way
        angles = angles + draws.normal(5, 4).clamp(-2, 2) * angles.new_tensor(_JITTER_DEG)
        angles = angles.clamp(self.limits[..., 0], self.limits[..., 1])
        # A thumb bent into the palm must lie on it, not in it.
        angles[:, 0, 1] = torch.maximum(angles[:, 0, 1], _MIN_THUMB_SUM - angles[:, 0, 0])
        return angles

    def rotations(self, angles: Tensor) -> Tensor:
        """Convert angles (B, 5, 4) to rotations (B, 15, 3, 3), MANO's joint order, relative to the rest pose."""
        change_rad = torch.deg2rad(angles - self._rest)
        bent = roma.rotvec_to_rotmat(change_rad[..., 1:, None] * self._flexion)
        # As in `annotator.hand.anatomy`: the thumb twists as it bends.
        twist = 0.5 * (change_rad[:, 0, 0] - change_rad[:, 0, 1])
        bent[:, 0, 0] = bent[:, 0, 0] @ roma.rotvec_to_rotmat(twist[:, None] * self._twist[0, 0])
        bent[:, :, 0] = roma.rotvec_to_rotmat(change_rad[..., :1] * self._spread[:, 0]) @ bent[:, :, 0]
        rotations = bent.new_empty(len(angles), 15, 3, 3)
        order = torch.tensor(FREIHAND_FROM_MANO[1:], device=bent.device).view(5, 4)[:, :3] - 1
        rotations[:, order] = bent
        return rotations


def _neighbours(points: Tensor) -> Tensor:
    """Return the nearest of (P, D) points to each, within blocks of a thousand: (P, _NEIGHBOURS) int64."""
    order = torch.arange(len(points), device=points.device)
    # Every block mixes all kinds of poses.
    blocks = [order[first :: max(len(points) // 1000, 1)] for first in range(max(len(points) // 1000, 1))]
    result = torch.zeros(len(points), _NEIGHBOURS, dtype=torch.int64, device=points.device)
    for block in blocks:
        near = torch.cdist(points[block], points[block]).topk(_NEIGHBOURS + 1, largest=False).indices[:, 1:]
        result[block] = block[near]
    return result


def counting_angles(rest_joints: Floats, count: int, generator: np.random.Generator) -> Floats:
    """Draw angles (count, 5, 4) in degrees of hands with each finger extended, bent or half-way independently."""
    thumbs = np.stack([gestures.gesture_angles(rest_joints, name)[0] for name in gestures.GESTURES])
    axes = anatomy.joint_axes(rest_joints)
    kept: list[Floats] = []
    while sum(map(len, kept)) < count:
        number = 2 * count
        angles = np.empty((number, 5, 4))
        out = generator.random((number, 4)) < generator.uniform(0.2, 0.9, (number, 1))
        curl = np.where(out, generator.beta(1, 8, out.shape), generator.beta(6, 1, out.shape))
        straight = generator.normal([4, 4, 3], [7, 5, 3], (number, 1, 3))
        angles[:, 1:, 1:] = straight + curl[..., None] * (_CURLED[:, 1:] - straight)
        spread = generator.beta(1, 1.2, (number, 1)) * (1 - curl)
        angles[:, 1:, 0] = _SPREAD_CLOSED + spread * (_SPREAD_OPEN - _SPREAD_CLOSED)
        angles[:, 0] = thumbs[generator.integers(len(thumbs), size=number)]
        angles += generator.normal(size=angles.shape) * [2.0, 4.0, 4.0, 3.0]
        angles = angles.clip(anatomy.LIMITS[..., 0], anatomy.LIMITS[..., 1])
        angles[:, 0, 1] = np.maximum(angles[:, 0, 1], _MIN_THUMB_SUM - angles[:, 0, 0])
        apart, height = plausible_poses.clearance(rest_joints, anatomy.pose_joints(rest_joints, angles, axes))
        kept.append(angles[(apart > _MIN_APART) & (height > _MIN_HEIGHT)])
    return np.concatenate(kept)[:count]
