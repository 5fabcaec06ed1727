"""A pinhole camera, written independently of `annotator.coordinates`."""

from __future__ import annotations

import numpy as np


def project_pinhole(
    points_mm: np.ndarray, cam_t_mm: np.ndarray, focal_px: np.ndarray, centre_px: np.ndarray
) -> np.ndarray:
    """Project camera points (B, N, 3), moved by `cam_t_mm` (B, 3), to photo pixels (B, N, 2)."""
    moved = np.asarray(points_mm) + np.asarray(cam_t_mm)[:, None]
    focal = np.asarray(focal_px)[:, None, None]
    return focal * moved[..., :2] / moved[..., 2:] + np.asarray(centre_px)[:, None]
