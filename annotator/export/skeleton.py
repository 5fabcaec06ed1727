"""A track as a moving skeleton: bones of one length, and each frame's rotations and wrist position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from annotator.coordinates import mirror_points, mirror_rotvec
from annotator.export.exported_labels import camera_field
from annotator.export.meshes import FROM_CAMERA
from annotator.export.tracks import Track
from annotator.hand.model import FREIHAND_FROM_MANO, JOINT_NAMES, MANO_FROM_FREIHAND, HandModel
from annotator.hand.refit import (
    CHILD,
    PALM,
    refit_rotations,
    shaped_rest_joints,
    steadied,
)
from annotator.labels.arrays import array_of

Floats = NDArray[np.floating]

#: Columns that a skeleton is made of.
COLUMNS = ("pose", "betas", "camera", "joints3d_mm")

#: The parent of each joint in MANO's order, tips last; -1 for the wrist.
PARENTS = (-1, *(0 if k in PALM else k - 1 for k in range(1, 16)), 15, 3, 6, 12, 9)

#: How little the palm's mesh is sheared where its five bones do not decide, as a share of their extent.
_STIFFNESS = 0.02

#: Names of the 16 articulated joints in MANO's order, and of the five tips behind them.
NAMES = tuple(JOINT_NAMES[k] for k in MANO_FROM_FREIHAND)


@dataclass(frozen=True, eq=False)
class Skeleton:
    """T frames of 21 joints, MANO's order, the tips last: metres, y up, the camera at the origin looking along -z.

    A left hand's rest pose is the mirror image of a right hand's.
    """

    parents: NDArray[np.int64]  # (21,) -1 for the wrist
    rest_m: Floats  # (21, 3) joints at rest
    rest_vertices_m: Floats  # (V, 3) the mesh at rest
    rotations: Rotation  # (T * 16) of each articulated joint in its parent's axes, frame by frame
    wrist_m: Floats  # (T, 3)
    time_s: Floats  # (T,) increasing

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def offsets_m(self) -> Floats:
        """The bone (21, 3) from each joint's parent to it at rest; 0 for the wrist."""
        offsets: Floats = np.where(self.parents[:, None] < 0, 0.0, self.rest_m - self.rest_m[self.parents])
        return offsets

    def quaternions(self) -> Floats:
        """Return unit quaternions (T, 16, 4), x, y, z, w; their signs do not jump between frames."""
        found = self.rotations.as_quat().reshape(-1, 16, 4)
        flips = np.where((found[1:] * found[:-1]).sum(-1) < 0, -1.0, 1.0)
        signs = np.concatenate([np.ones((1, 16)), np.cumprod(flips, 0)])
        steady: Floats = found * signs[..., None]
        return steady

    def joints_m(self) -> Floats:
        """Return the posed joints (T, 21, 3)."""
        matrices = self.rotations.as_matrix().reshape(-1, 16, 3, 3)
        offsets, chained = self.offsets_m, np.zeros_like(matrices)
        joints = np.zeros((len(self), 21, 3))
        for joint, parent in enumerate(self.parents):
            if parent < 0:
                chained[:, joint], joints[:, joint] = matrices[:, joint], self.wrist_m
                continue
            joints[:, joint] = joints[:, parent] + chained[:, parent] @ offsets[joint]
            if joint < 16:
                chained[:, joint] = chained[:, parent] @ matrices[:, joint]
        return joints


def has_skeleton(rows: pa.Table) -> NDArray[np.bool_]:
    """Return which rows (n,) have finite pose, shape, joints and position."""
    parts = [array_of(rows["pose"]), array_of(rows["betas"]), camera_field(rows, "cam_t_mm")]
    parts.append(array_of(rows["joints3d_mm"]).reshape(len(rows), -1))
    is_complete: NDArray[np.bool_] = np.logical_and.reduce([np.isfinite(part).all(1) for part in parts])
    return is_complete


def skeleton_of(model: HandModel, track: Track) -> Skeleton:
    """Return a track's skeleton, whose pose and bones follow `joints3d_mm`.

    Its shape is the mean of the frames' betas, which are equal as `track` writes them.
    """
    rows = track.rows
    betas = array_of(rows["betas"]).astype(np.float64).mean(0)
    vertices: Floats = model.v_template + model.shapedirs.astype(np.float64) @ betas
    own_rest = shaped_rest_joints(model, betas[None])[0]
    pose = array_of(rows["pose"]).astype(np.float64)
    joints = array_of(rows["joints3d_mm"])[:, list(MANO_FROM_FREIHAND)].astype(np.float64) / 1000
    if not track.is_right:
        joints = mirror_points(joints).astype(np.float64)
    own = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix().reshape(-1, 16, 3, 3)
    rotations = steadied(own, refit_rotations(own_rest[None], own, joints))
    rest = _rest_of_joints(own_rest, rotations[:, 0], joints)
    vertices = _stretched(vertices, model, own_rest, rest)
    rotvecs = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_rotvec()
    if not track.is_right:
        vertices, rest, rotvecs = mirror_points(vertices), mirror_points(rest), mirror_rotvec(rotvecs)
    upright = Rotation.from_matrix(np.diag(FROM_CAMERA).astype(np.float64))
    quaternions = Rotation.from_rotvec(rotvecs).as_quat().reshape(-1, 16, 4)
    quaternions[:, 0] = (upright * Rotation.from_quat(quaternions[:, 0])).as_quat()
    return Skeleton(
        parents=np.array(PARENTS),
        rest_m=rest,
        rest_vertices_m=vertices,
        rotations=Rotation.from_quat(quaternions.reshape(-1, 4)),
        wrist_m=camera_field(rows, "cam_t_mm").astype(np.float64) * FROM_CAMERA / 1000,
        time_s=track.time_s,
    )


def _rest_of_joints(rest: Floats, wrist_rotations: Floats, joints: Floats) -> Floats:
    """Return the joints (21, 3) at rest with the bones that a track has on average.

    Args:
        rest: (21, 3) of its shape, which gives the directions of the fingers.
        wrist_rotations: (T, 3, 3). joints: (T, 21, 3) wrist-relative, MANO's order.
    """
    found = rest.copy()
    for child, parent in enumerate(PARENTS):
        if parent == 0:  # the palm, in the wrist's axes
            found[child] = found[0] + (joints[:, None, child] @ wrist_rotations)[:, 0].mean(0)
        elif parent > 0:
            bone = rest[child] - rest[parent]
            length = np.linalg.norm(joints[:, child] - joints[:, parent], axis=1).mean()
            found[child] = found[parent] + bone * (length / np.linalg.norm(bone))
    return found


def _stretched(vertices: Floats, model: HandModel, before: Floats, after: Floats) -> Floats:
    """Return the mesh (V, 3) at rest moved with its joints (21, 3): along each bone, linearly from end to end."""
    moves = after - before
    # The palm has five bones: the affine map that moves their ends, and else as little as possible.
    palm = before[PALM] - before[0]
    spread = palm.T @ palm
    affine = np.linalg.solve(spread + _STIFFNESS * np.trace(spread) * np.eye(3), palm.T @ moves[PALM])
    by_bone = [(vertices - before[0]) @ affine]
    for joint in range(1, 16):
        child = CHILD[joint]
        bone = before[child] - before[joint]
        along = ((vertices - before[joint]) @ bone / (bone @ bone)).clip(0, 1)[:, None]
        by_bone.append((1 - along) * moves[joint] + along * moves[child])
    moved: Floats = vertices + np.einsum("vj,jvc->vc", model.weights.astype(np.float64), np.stack(by_bone))
    return moved


def joint_distances_mm(skeleton: Skeleton, track: Track) -> Floats:
    """Return the distance (T, 21) of the skeleton's joints from `joints3d_mm`, both relative to the wrist."""
    joints = (skeleton.joints_m() - skeleton.wrist_m[:, None])[:, list(FREIHAND_FROM_MANO)]
    apart: Floats = np.linalg.norm(joints * FROM_CAMERA * 1000 - array_of(track.rows["joints3d_mm"]), axis=-1)
    return apart
