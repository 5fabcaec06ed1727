"""What synthetic photos show: hands in plausible poses, their forearms and the camera. No pixels yet."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import roma
import torch
from torch import Tensor

from annotator.frames import project_weak
from annotator.hand import anatomy
from annotator.hand.layer import HandLayer
from annotator.hand.model import HandModel
from annotator.model.prior_net import UPRIGHT
from trainer.synth.forearm import ForearmMesh, forearms

#: The longer side of the hand's box over the photo's side.
FILL = (0.6, 0.9)

#: Shares of the views: the rest are turned any way at all.
VIEWED_UPRIGHT = 0.75

# Palm, back, thumb's side and little finger's side towards the camera, with their shares.
_YAW_DEG, _YAW_SHARES = (0.0, 180.0, 90.0, -90.0), (0.36, 0.36, 0.14, 0.14)
# A forearm that points straight at the camera would hide the hand.
_NEAREST_FOREARM = -0.8
_BARE = 0.65


@dataclass(frozen=True, eq=False)
class Scene:
    """B photos' worth of hands, as photographed: camera axes, wrist-relative, millimetres."""

    is_right: Tensor  # (B,) bool
    pose: Tensor  # (B, 48) of the right hand of which a left one is the mirror image
    betas: Tensor  # (B, 10) likewise
    vertices_mm: Tensor  # (B, V, 3)
    joints3d_mm: Tensor  # (B, 21, 3)
    forearm_mm: Tensor  # (B, A, 3)
    scale_per_mm: Tensor  # (B,) weak perspective: half photos a millimetre
    translation: Tensor  # (B, 2) half photos

    def __len__(self) -> int:
        return len(self.is_right)

    def __getitem__(self, rows: Any) -> Scene:
        return Scene(*(getattr(self, field.name)[rows] for field in fields(self)))

    def project(self, points_mm: Tensor) -> Tensor:
        """Camera (B, N, 3) to the photo (B, N, 3), -1 to 1, with a depth in the same unit."""
        upright = torch.eye(3).expand(len(self), 3, 3)
        return project_weak(points_mm, self.scale_per_mm, upright, self.translation)


def sample_scenes(
    hand: HandModel, layer: HandLayer, arm: ForearmMesh, count: int, generator: np.random.Generator
) -> Scene:
    """Draw `count` scenes, left and right hands alike."""
    fingers = anatomy.sample_poses(anatomy.rest_joints(hand), count, generator)
    betas = torch.from_numpy(generator.normal(size=(count, 10)).clip(-2.5, 2.5)).float()
    # Wrists bend most towards palm and back, least sideways.
    bend = generator.normal(size=(count, 3)).clip(-2.2, 2.2) * np.radians([0.0, 7.0, 18.0])
    turn = _views(count, torch.from_numpy(bend), generator).float()
    rotations = torch.cat(
        [turn[:, None], roma.rotvec_to_rotmat(torch.from_numpy(fingers).float().view(-1, 15, 3))], 1
    )
    vertices, joints = layer(rotations, betas)

    edge = vertices[:, arm.edge] @ turn  # back to the rest frame
    start = np.where(generator.random(count) < _BARE, np.inf, generator.uniform(5, 90, count))
    tube = forearms(edge, torch.from_numpy(bend).float(), torch.from_numpy(start).float())
    tube = tube @ turn.transpose(1, 2)

    is_right = torch.from_numpy(generator.random(count) < 0.5)
    mirror = torch.where(is_right, 1.0, -1.0)[:, None, None] * torch.tensor([1.0, 0, 0]) + torch.tensor(
        [0.0, 1, 1]
    )
    vertices, joints, tube = vertices * mirror, joints * mirror, tube * mirror
    scale, translation = _framing(vertices, generator)
    pose = roma.rotmat_to_rotvec(rotations).flatten(1)
    return Scene(is_right, pose, betas, vertices, joints, tube, scale, translation)


def _views(count: int, bend: Tensor, generator: np.random.Generator) -> Tensor:
    """Global rotations (count, 3, 3) float64 under which no forearm points straight at the camera."""
    forearm = roma.rotvec_to_rotmat(bend) @ torch.tensor([1.0, 0, 0], dtype=torch.float64)
    chosen = torch.zeros(count, 3, 3, dtype=torch.float64)
    missing = torch.ones(count, dtype=torch.bool)
    while missing.any():
        yaw = generator.choice(_YAW_DEG, count, p=_YAW_SHARES) + generator.normal(scale=25, size=count)
        angles = np.stack([generator.uniform(-60, 60, count), generator.normal(scale=18, size=count), yaw], 1)
        upright = roma.euler_to_rotmat("ZXY", torch.from_numpy(angles), degrees=True)
        upright = upright @ torch.tensor(UPRIGHT, dtype=torch.float64)
        quaternion = torch.from_numpy(generator.normal(size=(count, 4)))
        anyhow = roma.unitquat_to_rotmat(quaternion / quaternion.norm(dim=1, keepdim=True))
        posed = torch.from_numpy(generator.random(count) < VIEWED_UPRIGHT)
        views = torch.where(posed[:, None, None], upright, anyhow)
        depth = torch.einsum("bi,bi->b", views[:, 2], forearm)
        take = missing & (depth > _NEAREST_FOREARM)
        chosen[take] = views[take]
        missing &= ~take
    return chosen


def _framing(vertices_mm: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Scale (B,) and translation (B, 2) that put the hand's box inside the photo, not always in its middle."""
    low, high = vertices_mm[..., :2].amin(1), vertices_mm[..., :2].amax(1)
    fill = torch.from_numpy(generator.uniform(*FILL, len(vertices_mm))).float()
    scale = 2 * fill / (high - low).amax(1)
    room = 1 - scale[:, None] * (high - low) / 2
    shift = room * torch.from_numpy(generator.uniform(-0.7, 0.7, room.shape)).float()
    return scale, shift - scale[:, None] * (low + high) / 2
