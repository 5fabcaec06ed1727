"""Lenses by OpenCV: the second implementation of `annotator.lens`. Tests that import this need `cv2`."""

from __future__ import annotations

import cv2
import numpy as np

from annotator.lens import Lens

#: Distortion of a real fisheye.
FISHEYE = (-0.02, 0.01, -0.004, 0.0005)


def matrix(lens: Lens) -> np.ndarray:
    return np.array([[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1]], np.float64)


def by_opencv(points_mm: np.ndarray, lens: Lens) -> np.ndarray:
    project = cv2.fisheye.projectPoints if lens.model == "fisheye" else cv2.projectPoints
    k = np.array(lens.distortion)
    return project(points_mm[:, None], np.zeros(3), np.zeros(3), matrix(lens), k)[0][:, 0]


def through_fisheye(
    photo: np.ndarray,
    focal_px: float,
    principal_px: np.ndarray,
    rotation: np.ndarray,
    lens: Lens,
    side_px: int,
) -> np.ndarray:
    """Return what a fisheye camera sees of a photo, rotated away by `rotation` (3, 3): all of it by OpenCV."""
    across, down = np.meshgrid(np.arange(side_px) + 0.5, np.arange(side_px) + 0.5)
    pixels = np.stack([across, down], -1).reshape(-1, 1, 2)
    plane = cv2.fisheye.undistortPoints(pixels, matrix(lens), np.array(lens.distortion))[:, 0]
    rays = np.concatenate([plane, np.ones((len(plane), 1))], 1) @ rotation
    with np.errstate(all="ignore"):
        at = np.where(rays[:, 2:] > 0.1, focal_px * rays[:, :2] / rays[:, 2:] + principal_px - 0.5, -1e4)
    at = at.reshape(side_px, side_px, 2).astype(np.float32)
    return cv2.remap(photo, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderValue=(124, 116, 104))


def position_errors(label: dict, joints: np.ndarray, wrists: np.ndarray) -> dict[str, float]:
    """Return the errors of n hands: sizes are predicted, so positions are compared along the ray and across it."""
    positions = np.asarray(label["cam_t_mm"], np.float64)
    found = np.asarray(label["joints3d_mm"], np.float64)
    away, true_away = np.linalg.norm(positions, axis=1), np.linalg.norm(wrists, axis=1)
    cosine = (positions * wrists).sum(1) / away / true_away
    return {
        "mpjpe": float(np.linalg.norm(found - joints, axis=-1).mean()),
        "ray_deg": float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean()),
        "depth": float(np.median(np.abs(away / true_away - 1))),
    }
