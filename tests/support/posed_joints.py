"""Joints of poses, computed finger by finger."""

from __future__ import annotations

import numpy as np
import roma
import torch

from annotator.hand import anatomy, gestures, load_hand

REST = anatomy.rest_joints(load_hand("open"))


def naive_joints(rest: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Return the joints (21, 3) of one pose (45,), finger by finger, in MANO's order of fingers."""
    joints = rest.copy()
    for first, finger in zip((0, 3, 6, 9, 12), (1, 2, 4, 3, 0), strict=True):
        chained = np.eye(3)
        for k in range(3):
            rotvec = torch.from_numpy(pose.reshape(15, 3)[first + k])
            chained = chained @ roma.rotvec_to_rotmat(rotvec).numpy()
            here = 1 + 4 * finger + k
            joints[here + 1] = joints[here] + chained @ (rest[here + 1] - rest[here])
    return joints


def gesture_joints_mm(name: str) -> np.ndarray:
    return 1000 * naive_joints(REST, gestures.gesture_pose(REST, name))
