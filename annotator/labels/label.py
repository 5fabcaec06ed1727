"""The label of one photo, as `Predictor.predict` returns it."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Float = np.floating[Any]


class LabelCamera(TypedDict):
    """The column `camera` of a label."""

    scale: Float  # crop half-sides per millimetre
    rotation: Floats  # (3,) axis-angle, radians
    translation: Floats  # (2,) crop half-sides
    cam_t_mm: Floats  # (3,) position of the wrist
    focal_px: Float
    principal_px: Floats  # (2,)
    focal_source: str  # given, exif or assumed


class Label(TypedDict, total=False):
    """One hand: columns of the label schema as arrays; docs/labels.md describes each.

    V is the number of vertices, N that of samples. Columns that a network does not predict are None.
    """

    box_xyxy: Floats  # (4,)
    crop_xyxy: Floats  # (4,)
    is_right: np.bool_
    side_score: Float | None
    detection_score: Float
    joints3d_mm: Floats  # (21, 3)
    joints3d_std_mm: Floats  # (21, 3)
    joints2d_px: Floats  # (21, 2)
    joints2d_std_px: Floats  # (21, 2)
    vertices_mm: Floats  # (V, 3)
    vertices_std_mm: Floats  # (V, 3)
    joints3d_samples_mm: Floats  # (N, 21, 3), only with samples
    vertices_samples_mm: Floats  # (N, V, 3), only with samples
    pose: Floats | None  # (48,)
    betas: Floats | None  # (10,)
    camera: LabelCamera
    vertex_rgb: NDArray[np.uint8] | None  # (V, 3)
    vertex_visible: NDArray[np.bool_]  # (V,)
    visible_fraction: Float
    joint_visible: NDArray[np.bool_] | None  # (21,)
    joint_visible_score: Floats | None  # (21,)
    hidden_joints: np.integer[Any] | None
    joint_std_mm: Float
    max_joint_std_mm: Float
    vertex_std_mm: Float
    hand_length_mm: Float
    hand_length_std_mm: Float
    cam_t_std_mm: Floats  # (3,)
