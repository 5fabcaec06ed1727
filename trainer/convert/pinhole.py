"""Columns of an example from a data set's 3D points and its camera matrix K."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.photos.crops import box_around_joints

Floats = NDArray[np.floating]


def project(points_mm: Floats, K: Floats) -> Floats:
    """Project points (N, 3) in camera axes to photo pixels (N, 2)."""
    seen = points_mm @ K.T
    return seen[:, :2] / seen[:, 2:]


def camera_columns(K: Floats, where: str) -> dict[str, Any]:
    """Return the camera columns of an example without a known hand: `camera_matrix`, focal length, principal point.

    Raises:
        UserError: K (3, 3) is not a camera matrix.
    """
    if K[0, 0] <= 0 or K[1, 1] <= 0 or not np.allclose(K[2], [0, 0, 1]):
        raise UserError(f"{where}: expected a camera matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
    focal_px = (K[0, 0] + K[1, 1]) / 2
    camera = {"focal_px": float(focal_px), "principal_px": K[:2, 2].tolist(), "focal_source": "given"}
    return {"camera_matrix": K, "camera": camera}


def hand_columns(joints_mm: Floats, vertices_mm: Floats | None, K: Floats, where: str) -> dict[str, Any]:
    """Return the columns of a hand in camera axes, with its distance: joints, their pixels, box and camera.

    Args:
        joints_mm: (21, 3). vertices_mm: (N, 3) of any mesh of the hand, only for the box.
        K: (3, 3). where: name of the file, for error messages.

    Raises:
        UserError: the hand lies behind the camera.
    """
    points_mm = joints_mm if vertices_mm is None else np.concatenate([joints_mm, vertices_mm])
    if (points_mm[:, 2] <= 0).any():
        raise UserError(f"{where}: the hand lies behind the camera; expected metres along the camera's axis")
    columns = camera_columns(K, where)
    joints2d_px, relative_mm = project(joints_mm, K), joints_mm - joints_mm[0]
    return columns | {
        "camera": columns["camera"] | {"cam_t_mm": joints_mm[0].tolist()},
        "wrist_mm": joints_mm[0],
        "joints3d_mm": relative_mm,
        "joints2d_px": joints2d_px,
        "box_xyxy": _box(joints2d_px, None if vertices_mm is None else project(vertices_mm, K)),
        "box_source": "list",
    }


def _box(joints2d_px: Floats, vertices_px: Floats | None) -> Floats:
    if vertices_px is None:
        return box_around_joints(joints2d_px)
    return np.concatenate([vertices_px.min(0), vertices_px.max(0)])
