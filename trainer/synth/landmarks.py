"""Synthetic hands, and landmarks with the errors of a detector, on which the std of fits is calibrated.

A detector's errors resemble another hand more than independent noise. Its landmarks form a plausible hand, bent and
rotated slightly differently, with larger errors in depth than in the photo. So landmarks are drawn as those of the
true hand with other angles and another rotation, plus noise per joint. Along x and y only a part of the difference
counts. The amounts vary per hand. They were chosen so that fits improve on landmarks as little as on real photos.
There, landmarks are 10.0 mm off after Procrustes and fits 9.0 mm; here, 10.1 and 9.0 (`python benchmarks/fit.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from annotator.fitting.landmarks import Landmarks
from annotator.hand import HandModel, anatomy, plausible_poses
from annotator.hand.layer import HandLayer
from annotator.rotations import rotvec_to_rotmat

Floats = NDArray[np.floating]

#: Std of the other hand's joint angles, degrees: spread, then the three joints; and of its rotation about x, y, z.
_ANGLES_DEG, _ROTATION_DEG = (6.0, 15.0, 15.0, 10.5), (6.0, 6.0, 1.8)

#: Share of the other hand's difference in x and y; depth takes all of it.
_SHARE_2D = 0.8

#: Noise of each joint's coordinates, and the std of the logarithm of a hand's level, which scales all of these.
_NOISE_MM, _LEVEL = 2.5, 0.35


@dataclass(frozen=True, eq=False)
class SimulatedDetections:
    """B right hands and their landmarks; a pixel is a millimetre."""

    vertices_mm: Floats  # (B, V, 3) wrist-relative, camera axes
    joints3d_mm: Floats  # (B, 21, 3)
    landmarks: Landmarks


def simulated_detections(hand: HandModel, count: int, rng: np.random.Generator) -> SimulatedDetections:
    """Draw hands in plausible poses, of any shape, at any rotation, and a detector's landmarks of them."""
    rest = anatomy.rest_joints(hand)
    layer = HandLayer(hand)
    angles = plausible_poses.sample_angles(rest, count, rng)
    quaternions = torch.from_numpy(rng.normal(size=(count, 4)))
    rotation = roma.unitquat_to_rotmat(torch.nn.functional.normalize(quaternions, dim=-1))
    betas = torch.from_numpy(rng.normal(size=(count, 10))).float()

    def posed(angles: Floats, rotation: torch.Tensor) -> tuple[Floats, Floats]:
        fingers = rotvec_to_rotmat(torch.from_numpy(anatomy.pose_from_angles(rest, angles)).view(-1, 15, 3))
        vertices, joints = layer(torch.cat([rotation[:, None], fingers], 1).float(), betas)
        return vertices.numpy(), joints.numpy()

    vertices, joints = posed(angles, rotation)
    level = np.exp(_LEVEL * rng.normal(size=(count, 1, 1)))
    bent = angles + level * _ANGLES_DEG * rng.normal(size=angles.shape)
    rotvecs = np.radians(level[:, 0] * _ROTATION_DEG) * rng.normal(size=(count, 3))
    _, others = posed(bent, rotvec_to_rotmat(torch.from_numpy(rotvecs)) @ rotation)
    off = others - joints
    off = (off - off.mean(1, keepdims=True)) * [_SHARE_2D, _SHARE_2D, 1.0]
    points = joints + off + level * _NOISE_MM * rng.normal(size=joints.shape)
    return SimulatedDetections(
        vertices, joints, Landmarks(points[..., :2], points[..., 2], np.ones(count, bool))
    )
