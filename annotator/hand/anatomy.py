"""Anatomy of the hand: joint axes, joint limits, and poses from anatomical angles.

Everything here is computed from the 21 rest joints of a hand in MANO's layout (FreiHAND's order, metres),
so it applies to any such hand. Anatomical angles are absolute: 0 is a flat hand with parallel fingers,
for any rest pose. They are (N, 5, 4) degrees, thumb to little finger, for each finger

    [spread, flexion of joint 1, flexion of joint 2, flexion of joint 3]

Spread is the finger's direction in the palm plane, relative to the palm's long axis, positive towards the
thumb's side. Flexion is positive towards the palm. The thumb's joint 1 is its saddle joint: its
"flexion" is palmar abduction, out of the palm plane, and a twist (pronation) follows from both of its angles.
Gestures and plausible poses in these angles: `gestures.py`, `plausible_poses.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from annotator.hand.model import FREIHAND_FROM_MANO, HandModel
from annotator.rotations import rotmat_to_rotvec, rotvec_to_rotmat

Array = NDArray[np.floating]

#: Lower and upper bound of each angle, degrees: (5, 4, 2).
LIMITS = np.array(
    [
        [[0, 65], [5, 70], [-5, 60], [-5, 80]],
        [[-12, 25], [-20, 90], [0, 105], [0, 80]],
        [[-14, 14], [-20, 90], [0, 105], [0, 80]],
        [[-24, 10], [-20, 90], [0, 110], [0, 80]],
        [[-38, 12], [-20, 95], [0, 105], [0, 85]],
    ],
    dtype=np.float64,
)

# Tilt of each finger's back, relative to the palm's back, towards the thumb's side (degrees). With it bent fingers
# point at the base of the thumb.
_LEAN = np.array([70.0, 15.0, 5.0, -4.0, -12.0])
#: The thumb's pronation per degree of palmar abduction and per degree less of spread.
THUMB_TWIST = (0.5, 0.5)


def rest_joints(hand: HandModel) -> Array:
    """Return the 21 joints (21, 3) of the mean hand at rest, FreiHAND's order, metres."""
    joints = np.concatenate([hand.J_regressor @ hand.v_template, hand.v_template[hand.tip_vertices]])
    return joints[list(FREIHAND_FROM_MANO)].astype(np.float64)


@dataclass(frozen=True)
class JointAxes:
    """Unit axes in the rest frame, and the angles of the rest pose.

    `flexion`, `spread`, `twist` are (5, 3, 3): finger, joint, axis. A positive rotation about `flexion` bends
    towards the palm, about `spread` towards the thumb's side. `twist` points along the bone to the tip.
    `rest_angles` is (5, 4), degrees.
    """

    flexion: Array
    spread: Array
    twist: Array
    rest_angles: Array


def _unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _angle(start: Array, end: Array, axis: Array) -> float:
    """Return the signed angle in degrees that rotates `start` to `end` about `axis`."""
    return float(np.degrees(np.arctan2(np.cross(start, end) @ axis, start @ end)))


def palm_frame(rest_joints: Array) -> tuple[Array, float]:
    """Return unit rows (3, 3): along the palm, out of its back, across to the thumb's side; and its length."""
    wrist, knuckles = rest_joints[0], rest_joints[5::4]
    along = knuckles[1:3].mean(0) - wrist
    length = float(np.linalg.norm(along))
    along = along / length
    across = knuckles[0] - knuckles[3]
    across = _unit(across - along * (across @ along))
    return np.stack([along, np.cross(along, across), across]), length


def joint_axes(rest_joints: Array) -> JointAxes:
    """Return the anatomical axes of a hand from its 21 rest joints (21, 3)."""
    (along, back, across), _ = palm_frame(rest_joints)
    bones = _unit(np.diff(rest_joints[1:].reshape(5, 4, 3), axis=1))
    lean = np.radians(_LEAN)[:, None]
    backs = np.cos(lean) * back + np.sin(lean) * across
    bend = _unit(np.cross(backs, bones.mean(1)))
    bend[0] = _unit(np.cross(backs[0], bones[0, 1:].mean(0)))
    flexion = np.repeat(bend[:, None], 3, axis=1)
    flexion[0, 0] = _unit(np.cross(back, bones[0, 0]))

    rest = np.zeros((5, 4))
    for finger in range(5):
        axis = flexion[finger, 0]
        flat = _unit(np.cross(axis, back))
        rest[finger] = [
            _angle(along, flat, back),
            _angle(flat, bones[finger, 0], axis),
            _angle(bones[finger, 0], bones[finger, 1], flexion[finger, 1]),
            _angle(bones[finger, 1], bones[finger, 2], flexion[finger, 2]),
        ]
    spread = np.broadcast_to(back, (5, 3, 3)).copy()
    return JointAxes(flexion, spread, bones, rest)


def _rotations(axes: JointAxes, angles: Array) -> torch.Tensor:
    """Return rotation matrices (N, 5, 3, 3, 3) of every finger joint, relative to the rest pose."""
    change_rad = torch.from_numpy(np.radians(angles - axes.rest_angles))

    def about(axis: Array, angle: torch.Tensor) -> torch.Tensor:
        return rotvec_to_rotmat(angle[..., None] * torch.from_numpy(axis))

    rotations = about(axes.flexion, change_rad[..., 1:])
    thumb_twist = -THUMB_TWIST[0] * change_rad[:, 0, 1] + THUMB_TWIST[1] * change_rad[:, 0, 0]
    rotations[:, 0, 0] = rotations[:, 0, 0] @ about(axes.twist[0, 0], thumb_twist)
    rotations[:, :, 0] = about(axes.spread[:, 0], change_rad[..., 0]) @ rotations[:, :, 0]
    return rotations


def pose_from_angles(rest_joints: Array, angles: Array) -> Array:
    """Convert anatomical angles (N, 5, 4), degrees, to poses (N, 45): absolute axis-angle, MANO's joint order."""
    rotvecs = rotmat_to_rotvec(_rotations(joint_axes(rest_joints), angles))
    joints = np.zeros((len(angles), 16, 3))
    order = np.array(FREIHAND_FROM_MANO[1:]).reshape(5, 4)[:, :3]
    joints[:, order] = rotvecs.numpy()
    return joints[:, 1:].reshape(-1, 45)


def pose_joints(rest_joints: Array, angles: Array, axes: JointAxes | None = None) -> Array:
    """Return the 21 joints (N, 21, 3) for anatomical angles (N, 5, 4), in the unit of `rest_joints`.

    `axes`: the result of `joint_axes(rest_joints)`, to avoid computing it again.
    """
    rotations = _rotations(axes or joint_axes(rest_joints), angles).numpy()
    fingers = rest_joints[1:].reshape(5, 4, 3)
    joints = np.empty((len(angles), 21, 3))
    joints[:, 0] = rest_joints[0]
    posed = joints[:, 1:].reshape(-1, 5, 4, 3)
    posed[:, :, 0] = fingers[:, 0]
    chained = np.broadcast_to(np.eye(3), (len(angles), 5, 3, 3))
    for k in range(3):
        chained = chained @ rotations[:, :, k]
        posed[:, :, k + 1] = posed[:, :, k] + np.einsum(
            "nfij,fj->nfi", chained, fingers[:, k + 1] - fingers[:, k]
        )
    joints[:, 1:] = posed.reshape(-1, 20, 3)
    return joints


def chirality(joints3d: Array) -> Array:
    """Return the side of hands with joints (..., 21, 3): positive for a right hand, negative for a left, (...).

    The value is the sum over four fingers of their bend along the line from little to index knuckle. A bend is
    cross(proximal phalanx, rest of the finger). Any unit and any right-handed frame (such as camera axes) will do.
    The value grows with the bend and is meaningless for straight fingers.
    """
    fingers = joints3d[..., 5:, :].reshape(*joints3d.shape[:-2], 4, 4, 3)
    bend = np.cross(fingers[..., 1, :] - fingers[..., 0, :], fingers[..., 3, :] - fingers[..., 1, :])
    across = fingers[..., 0, 0, :] - fingers[..., 3, 0, :]
    return np.einsum("...fi,...i->...", bend, across)
