"""Anatomy of the hand: joint axes, joint limits, gestures and plausible poses.

Everything here is computed from the 21 rest joints of a hand in MANO's layout (FreiHAND's order, metres),
so it applies to any such hand. Anatomical angles are absolute: 0 is a flat hand with parallel fingers,
for any rest pose. They are (N, 5, 4) degrees, thumb to little finger, for each finger

    [spread, flexion of joint 1, flexion of joint 2, flexion of joint 3]

Spread is the finger's direction in the palm plane, relative to the palm's long axis, positive towards the
thumb's side. Flexion is positive towards the palm. The thumb's joint 1 is its saddle joint: its
"flexion" is palmar abduction, out of the palm plane, and a twist (pronation) follows from both of its angles.
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

_OPEN = [[16, 4, 5, 3], [0, 4, 5, 3], [-12, 4, 5, 3], [-22, 4, 5, 3]]
_CLOSED = [[2, 4, 5, 3], [-3, 4, 5, 3], [-8, 4, 5, 3], [-13, 4, 5, 3]]
_CURLED = [[2, 70, 91, 41], [-2, 71, 92, 42], [-7, 71, 91, 41], [-12, 70, 84, 38]]

#: Whole-hand gestures by name, as angles (5, 4) in degrees, thumb first.
GESTURES: dict[str, Array] = {
    name: np.array(angles, dtype=np.float64)
    for name, angles in {
        "open_palm": [[55, 20, 5, 5], *_OPEN],
        "flat": [[44, 20, 5, 5], *_CLOSED],
        "relaxed": [[40, 35, 15, 15], [8, 22, 30, 15], [-2, 28, 35, 18], [-9, 32, 38, 20], [-17, 35, 35, 20]],
        "fist": [[12, 38, 30, 35], *_CURLED],
        "pointing": [[12, 38, 30, 35], [4, 2, 5, 3], *_CURLED[1:]],
        "thumb_up": [[60, 12, 0, 0], *_CURLED],
        "victory": [[8, 38, 35, 40], [14, 4, 5, 3], [-10, 4, 5, 3], *_CURLED[2:]],
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
        "call": [[60, 15, 0, 0], *_CURLED[:3], [-24, 2, 5, 3]],
        "three": [[55, 20, 5, 5], [14, 4, 5, 3], [-6, 4, 5, 3], *_CURLED[2:]],
    }.items()
}
# Minimum `clearance` in `sample_angles`.
_MIN_APART, _MIN_HEIGHT = 0.12, 0.2
# Minimum sum of the thumb's spread and its palmar abduction, degrees.
_MIN_THUMB_SUM = 62.0
# Target of the thumb's tip in a gesture, solved for each hand: a finger, a number of bones from its knuckle
# (3 is its tip), and an offset in palm lengths (towards the tips, the palm's back, the thumb's side).
_THUMB_AT: dict[str, tuple[int, float, tuple[float, float, float]]] = {
    "fist": (2, 2.0, (-0.06, -0.24, 0.06)),
    "pointing": (2, 2.0, (-0.06, -0.24, 0.06)),
    "victory": (3, 2.0, (-0.06, -0.24, 0.06)),
    "pinch": (1, 3.0, (-0.05, -0.02, 0.0)),
    "ok": (1, 3.0, (-0.05, -0.02, 0.0)),
}


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


def _turn(start: Array, end: Array, axis: Array) -> float:
    """Return the signed angle in degrees that rotates `start` to `end` about `axis`."""
    return float(np.degrees(np.arctan2(np.cross(start, end) @ axis, start @ end)))


def _palm_frame(rest_joints: Array) -> tuple[Array, float]:
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
    (along, back, across), _ = _palm_frame(rest_joints)
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
            _turn(along, flat, back),
            _turn(flat, bones[finger, 0], axis),
            _turn(bones[finger, 0], bones[finger, 1], flexion[finger, 1]),
            _turn(bones[finger, 1], bones[finger, 2], flexion[finger, 2]),
        ]
    spread = np.broadcast_to(back, (5, 3, 3)).copy()
    return JointAxes(flexion, spread, bones, rest)


def _rotations(axes: JointAxes, angles: Array) -> torch.Tensor:
    """Return rotation matrices (N, 5, 3, 3, 3) of every finger joint, relative to the rest pose."""
    turn = torch.from_numpy(np.radians(angles - axes.rest_angles))

    def about(axis: Array, angle: torch.Tensor) -> torch.Tensor:
        return rotvec_to_rotmat(angle[..., None] * torch.from_numpy(axis))

    rotations = about(axes.flexion, turn[..., 1:])
    thumb_twist = -THUMB_TWIST[0] * turn[:, 0, 1] + THUMB_TWIST[1] * turn[:, 0, 0]
    rotations[:, 0, 0] = rotations[:, 0, 0] @ about(axes.twist[0, 0], thumb_twist)
    rotations[:, :, 0] = about(axes.spread[:, 0], turn[..., 0]) @ rotations[:, :, 0]
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
    turned = np.broadcast_to(np.eye(3), (len(angles), 5, 3, 3))
    for k in range(3):
        turned = turned @ rotations[:, :, k]
        posed[:, :, k + 1] = posed[:, :, k] + np.einsum(
            "nfij,fj->nfi", turned, fingers[:, k + 1] - fingers[:, k]
        )
    joints[:, 1:] = posed.reshape(-1, 20, 3)
    return joints


def _place_thumb(
    rest_joints: Array, angles: Array, finger: int, bones: float, offset: tuple[float, float, float]
) -> Array:
    """Solve the thumb's angles (5, 4), and the finger's if the tips meet, by damped Gauss-Newton steps."""
    palm, length = _palm_frame(rest_joints)
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
    closed, opened = np.array(_CLOSED)[:, 0], np.array(_OPEN)[:, 0] * 1.15
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
    palm, length = _palm_frame(rest_joints)
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
