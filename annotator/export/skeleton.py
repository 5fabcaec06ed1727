"""A track as a moving skeleton: bones of one length, and each frame's rotations and wrist position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from annotator.coordinates import mirror_points, mirror_rotvec
from annotator.export.meshes import FROM_CAMERA
from annotator.export.rows import camera_field
from annotator.export.tracks import Track
from annotator.hand.model import FREIHAND_FROM_MANO, JOINT_NAMES, HandModel
from annotator.labels.arrays import array_of

Floats = NDArray[np.floating]

#: Columns that a skeleton is made of.
COLUMNS = ("pose", "betas", "camera", "joints3d_mm")

#: Names of the 16 articulated joints in MANO's order, and of the five tips behind them.
NAMES = tuple(JOINT_NAMES[FREIHAND_FROM_MANO.index(k)] for k in range(21))


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
        offsets, turned = self.offsets_m, np.zeros_like(matrices)
        joints = np.zeros((len(self), 21, 3))
        for joint, parent in enumerate(self.parents):
            if parent < 0:
                turned[:, joint], joints[:, joint] = matrices[:, joint], self.wrist_m
                continue
            joints[:, joint] = joints[:, parent] + turned[:, parent] @ offsets[joint]
            if joint < 16:
                turned[:, joint] = turned[:, parent] @ matrices[:, joint]
        return joints


def has_skeleton(rows: pa.Table) -> NDArray[np.bool_]:
    """Return which rows (n,) have finite pose, shape and place."""
    parts = (array_of(rows["pose"]), array_of(rows["betas"]), camera_field(rows, "cam_t_mm"))
    sound: NDArray[np.bool_] = np.logical_and.reduce([np.isfinite(part).all(1) for part in parts])
    return sound


def skeleton_of(model: HandModel, track: Track) -> Skeleton:
    """Return a track's skeleton; its shape is the mean of the frames' betas, which are equal as `track` writes them."""
    rows = track.rows
    betas = array_of(rows["betas"]).astype(np.float64).mean(0)
    vertices: Floats = model.v_template + model.shapedirs.astype(np.float64) @ betas
    rest: Floats = np.concatenate([model.J_regressor @ vertices, vertices[model.tip_vertices]])
    pose: Floats = array_of(rows["pose"]).astype(np.float64).reshape(-1, 16, 3)
    if not track.is_right:
        vertices, rest, pose = mirror_points(vertices), mirror_points(rest), mirror_rotvec(pose)
    rotations = Rotation.from_rotvec(pose.reshape(-1, 3))
    upright = Rotation.from_matrix(np.diag(FROM_CAMERA).astype(np.float64))
    turns = rotations.as_quat().reshape(-1, 16, 4)
    turns[:, 0] = (upright * Rotation.from_quat(turns[:, 0])).as_quat()
    parents = np.concatenate([np.maximum(model.kintree_table[0], -1), _tip_parents()])
    return Skeleton(
        parents=parents,
        rest_m=rest,
        rest_vertices_m=vertices,
        rotations=Rotation.from_quat(turns.reshape(-1, 4)),
        wrist_m=camera_field(rows, "cam_t_mm").astype(np.float64) * FROM_CAMERA / 1000,
        time_s=track.time_s,
    )


def _tip_parents() -> list[int]:
    """Return the last articulated joint of each finger, thumb to little, in MANO's order."""
    return [FREIHAND_FROM_MANO[FREIHAND_FROM_MANO.index(16 + finger) - 1] for finger in range(5)]


def joint_distances_mm(skeleton: Skeleton, track: Track) -> Floats:
    """Return the distance (T, 21) of the skeleton's joints from `joints3d_mm`, both relative to the wrist."""
    joints = (skeleton.joints_m() - skeleton.wrist_m[:, None])[:, list(FREIHAND_FROM_MANO)]
    apart: Floats = np.linalg.norm(joints * FROM_CAMERA * 1000 - array_of(track.rows["joints3d_mm"]), axis=-1)
    return apart
