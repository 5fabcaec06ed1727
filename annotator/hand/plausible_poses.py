"""Plausible random poses: fingers curl together, keep their limits and do not intersect."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotator.hand.anatomy import (
    LIMITS,
    joint_axes,
    palm_frame,
    pose_from_angles,
    pose_joints,
)
from annotator.hand.gestures import CLOSED_FINGERS, GESTURES, OPEN_FINGERS, gesture_angles

Array = NDArray[np.floating]

# Minimum `clearance` in `sample_angles`.
_MIN_APART, _MIN_HEIGHT = 0.12, 0.2
# Minimum sum of the thumb's spread and its palmar abduction, degrees.
_MIN_THUMB_SUM = 62.0


def _synergy_angles(count: int, generator: np.random.Generator) -> Array:
    """Draw angles (count, 5, 4): fingers curl together, outer joints follow inner ones, bent fingers close up."""
    normal = generator.normal

    def mix(closed: Array | float, opened: Array | float, share: Array | float) -> Array:
        return np.asarray(closed + (opened - closed) * share)

    together = generator.beta(0.9, 1.1, size=(count, 1))
    slope = normal(scale=0.12, size=(count, 1)) * np.array([-1.5, -0.5, 0.5, 1.5])
    alone = np.where(generator.random((count, 4)) < 0.15, generator.random((count, 4)), together)
    curl = (alone + slope + normal(scale=0.06, size=(count, 4))).clip(0, 1)
    knuckle = (curl + normal(scale=0.18, size=(count, 1))).clip(0, 1)

    angles = np.empty((count, 5, 4))
    fingers = angles[:, 1:]
    fingers[..., 1] = mix(-12, 78, knuckle) + normal(scale=4, size=(count, 4))
    fingers[..., 2] = mix(4, 94, curl) + normal(scale=4, size=(count, 4))
    fingers[..., 3] = 0.5 * fingers[..., 2] + normal(scale=4, size=(count, 4))
    spread = generator.beta(1.0, 1.3, size=(count, 1)) * (1 - 0.85 * knuckle)
    closed, opened = np.array(CLOSED_FINGERS)[:, 0], np.array(OPEN_FINGERS)[:, 0] * 1.15
    fingers[..., 0] = mix(closed, opened, spread) + normal(scale=1.5, size=(count, 4))

    bent = mix(generator.random((count, 1)), together, 0.6)[:, 0]
    angles[:, 0, 0] = mix(58, 12, generator.beta(1.3, 1.3, size=count))
    angles[:, 0, 1] = mix(12, 58, bent) + normal(scale=6, size=count)
    angles[:, 0, 2] = mix(2, 35, bent) + normal(scale=8, size=count)
    angles[:, 0, 3] = mix(2, 45, bent) + normal(scale=10, size=count)
    return angles


def _gesture_blends(gestures: Array, count: int, generator: np.random.Generator) -> Array:
    """Draw angles (count, 5, 4) between two of the `gestures (G, 5, 4)`, with some jitter."""
    pair = gestures[generator.integers(len(gestures), size=(count, 2))]
    share = generator.beta(0.35, 0.35, size=(count, 1, 1))
    blend = pair[:, 0] + share * (pair[:, 1] - pair[:, 0])
    return blend + generator.normal(size=blend.shape) * np.array([2.5, 5.0, 5.0, 3.0])


def clearance(rest_joints: Array, joints: Array) -> tuple[Array, Array]:
    """Return the distances of the fingers of joints (N, 21, 3) from each other and from the palm, two arrays (N,).

    Both are shares of the palm's length; a sixth of it is about a finger's thickness. The first is the minimum
    distance between the bones of two fingers, without their tips. The second is the minimum height of a fingertip
    above the palm's bones. The wrist must not be rotated.
    """
    palm, length = palm_frame(rest_joints)
    fingers = joints[:, 1:].reshape(-1, 5, 4, 3)
    steps = np.array([0.0, 0.33, 0.67])[:, None]
    points = fingers[:, :, :3, None] + steps * np.diff(fingers, axis=2)[:, :, :, None]
    points = points.reshape(len(joints), 5, 9, 3)
    apart = np.full(len(joints), np.inf)
    for a in range(5):
        # The thumb's first bone lies in the palm.
        first = points[:, a, 3:] if a == 0 else points[:, a]
        for b in range(a + 1, 5):
            distance = np.linalg.norm(first[:, :, None] - points[:, b, None], axis=-1)
            apart = np.minimum(apart, distance.min(axis=(1, 2)))
    tips = (joints[:, 4::4] - joints[:, :1]) @ palm.T
    height = np.where(tips[..., 0] < 0.95 * length, -tips[..., 1], np.inf).min(axis=1)
    return apart / length, height / length


def sample_angles(rest_joints: Array, count: int, generator: np.random.Generator) -> Array:
    """Draw plausible angles (count, 5, 4), degrees, within `LIMITS`, where no finger intersects another.

    Half come from finger synergies, half lie between gestures.
    """
    gestures = np.stack([gesture_angles(rest_joints, name) for name in GESTURES])
    axes = joint_axes(rest_joints)
    kept: list[Array] = []
    while sum(map(len, kept)) < count:
        batch = max(count // 2, 16)
        angles = np.concatenate(
            [_synergy_angles(batch, generator), _gesture_blends(gestures, batch, generator)]
        ).clip(LIMITS[..., 0], LIMITS[..., 1])
        # A thumb folded over the palm lies on it, not in it.
        angles[:, 0, 1] = np.maximum(angles[:, 0, 1], _MIN_THUMB_SUM - angles[:, 0, 0])
        apart, height = clearance(rest_joints, pose_joints(rest_joints, angles, axes))
        free = (apart > _MIN_APART) & (height > _MIN_HEIGHT)
        kept.append(generator.permutation(angles[free]))
    return np.concatenate(kept)[:count]


def sample_poses(rest_joints: Array, count: int, generator: np.random.Generator) -> Array:
    """Draw plausible poses (count, 45), see `sample_angles`: absolute axis-angle, MANO's joint order."""
    return pose_from_angles(rest_joints, sample_angles(rest_joints, count, generator))
