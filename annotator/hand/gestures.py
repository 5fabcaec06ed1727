"""Gestures of the whole hand by name, in anatomical angles (`anatomy.py`), with the thumb placed for each hand."""

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

Array = NDArray[np.floating]

# Angles of the four fingers, index to little finger.
OPEN_FINGERS = [[16, 4, 5, 3], [0, 4, 5, 3], [-12, 4, 5, 3], [-22, 4, 5, 3]]
CLOSED_FINGERS = [[2, 4, 5, 3], [-3, 4, 5, 3], [-8, 4, 5, 3], [-13, 4, 5, 3]]
_CURLED_FINGERS = [[2, 70, 91, 41], [-2, 71, 92, 42], [-7, 71, 91, 41], [-12, 70, 84, 38]]

#: Whole-hand gestures by name, as angles (5, 4) in degrees, thumb first.
GESTURES: dict[str, Array] = {
    name: np.array(angles, dtype=np.float64)
    for name, angles in {
        "open_palm": [[55, 20, 5, 5], *OPEN_FINGERS],
        "flat": [[44, 20, 5, 5], *CLOSED_FINGERS],
        "relaxed": [[40, 35, 15, 15], [8, 22, 30, 15], [-2, 28, 35, 18], [-9, 32, 38, 20], [-17, 35, 35, 20]],
        "fist": [[12, 38, 30, 35], *_CURLED_FINGERS],
        "pointing": [[12, 38, 30, 35], [4, 2, 5, 3], *_CURLED_FINGERS[1:]],
        "thumb_up": [[60, 12, 0, 0], *_CURLED_FINGERS],
        "victory": [[8, 38, 35, 40], [14, 4, 5, 3], [-10, 4, 5, 3], *_CURLED_FINGERS[2:]],
        "pinch": [[22, 50, 15, 25], [4, 48, 50, 25], [-2, 50, 55, 30], [-8, 52, 58, 32], [-14, 52, 55, 32]],
        "ok": [[22, 50, 15, 25], [4, 48, 50, 25], [-2, 20, 20, 10], [-10, 10, 12, 6], [-20, 5, 8, 4]],
        "cylinder_grasp": [
            [36, 60, 8, 18],
            [5, 32, 48, 26],
            [-2, 35, 50, 28],
            [-9, 37, 50, 28],
            [-16, 38, 48, 28],
        ],
        "sphere_grasp": [
            [38, 55, 10, 25],
            [14, 25, 45, 30],
            [0, 28, 48, 30],
            [-12, 28, 48, 30],
            [-24, 28, 45, 30],
        ],
        "hook": [[45, 22, 10, 10], [2, 18, 85, 32], [-3, 18, 85, 32], [-8, 18, 85, 32], [-13, 18, 80, 30]],
        "table_top": [[50, 22, 5, 10], [2, 75, 8, 4], [-3, 75, 8, 4], [-8, 75, 8, 4], [-13, 75, 8, 4]],
        "call": [[60, 15, 0, 0], *_CURLED_FINGERS[:3], [-24, 2, 5, 3]],
        "three": [[55, 20, 5, 5], [14, 4, 5, 3], [-6, 4, 5, 3], *_CURLED_FINGERS[2:]],
    }.items()
}
# Target of the thumb's tip in a gesture, solved for each hand: a finger, a number of bones from its knuckle (3 is its
# tip), and an offset. The offset is in palm lengths: towards the tips, the palm's back, the thumb's side.
_THUMB_AT: dict[str, tuple[int, float, tuple[float, float, float]]] = {
    "fist": (2, 2.0, (-0.06, -0.24, 0.06)),
    "pointing": (2, 2.0, (-0.06, -0.24, 0.06)),
    "victory": (3, 2.0, (-0.06, -0.24, 0.06)),
    "pinch": (1, 3.0, (-0.05, -0.02, 0.0)),
    "ok": (1, 3.0, (-0.05, -0.02, 0.0)),
}


def _place_thumb(
    rest_joints: Array, angles: Array, finger: int, bones: float, offset: tuple[float, float, float]
) -> Array:
    """Solve the thumb's angles (5, 4), and the finger's if the tips meet, by damped Gauss-Newton steps."""
    palm, length = palm_frame(rest_joints)
    shift = length * np.array(offset) @ palm
    axes = joint_axes(rest_joints)
    free = [(0, 0), (0, 1), (0, 2), (0, 3)] + ([(finger, 1), (finger, 2)] if bones == 3 else [])
    at = tuple(np.array(free).T)
    inner = 1 + 4 * finger + min(int(bones), 2)
    share = bones - min(int(bones), 2)

    def miss(batch: Array) -> Array:
        joints = pose_joints(rest_joints, batch, axes)
        target = (1 - share) * joints[:, inner] + share * joints[:, inner + 1] + shift
        return (joints[:, 4] - target) / (0.01 * length)

    wanted, now = angles[at], angles.copy()
    for _ in range(10):
        nudged = np.repeat(now[None], len(free) + 1, axis=0)
        nudged[(np.arange(len(free)), *at)] += 1.0
        misses = miss(nudged)
        slope = (misses[:-1] - misses[-1]).T
        # An error of 1 % of the palm costs as much as 15 degrees away from the plain gesture.
        normal = slope.T @ slope + np.eye(len(free)) / 15.0**2
        now[at] -= np.linalg.solve(normal, slope.T @ misses[-1] + (now[at] - wanted) / 15.0**2)
        now = now.clip(LIMITS[..., 0], LIMITS[..., 1])
    return now


def gesture_angles(rest_joints: Array, name: str) -> Array:
    """Return the angles (5, 4), degrees, of a gesture on this hand, with the thumb's tip at its target."""
    angles = GESTURES[name].copy()
    return _place_thumb(rest_joints, angles, *_THUMB_AT[name]) if name in _THUMB_AT else angles


def gesture_pose(rest_joints: Array, name: str) -> Array:
    """Return the pose (45,) of the gesture `name`, one of `GESTURES`, on the hand with these rest joints (21, 3)."""
    return pose_from_angles(rest_joints, gesture_angles(rest_joints, name)[None])[0]
