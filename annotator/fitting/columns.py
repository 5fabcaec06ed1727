"""A fit as label columns (`annotator.io.schema`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from annotator import frames
from annotator.fitting.hand_fit import Fit, HandFitter
from annotator.fitting.job import ListedHands, focal_of
from annotator.fitting.landmarks import Landmarks
from annotator.io.crops import BOX_PADDING, box_around_joints
from annotator.render import nearest_faces, visible_vertices

#: Side of the image in which vertices see or hide each other.
_RASTER_PX = 128


def label_columns(fitter: HandFitter, hands: ListedHands) -> dict[str, Any]:
    """Fit n hands and return their columns: name to array (n, ...)."""
    points = np.array([listed.landmarks for listed in hands.hands], np.float64)
    right = np.array([np.nan if h.right_score is None else h.right_score for h in hands.hands], np.float64)
    landmarks = Landmarks(points[..., :2], points[..., 2], right >= 0.5)
    unknown = np.flatnonzero(np.isnan(right))
    if len(unknown):
        landmarks.is_right[unknown], right[unknown] = fitter.sides(landmarks[unknown])
    fit = fitter.fit(landmarks)
    boxes = np.stack(
        [
            box_around_joints(joints) if listed.box_xyxy is None else np.array(listed.box_xyxy, np.float64)
            for listed, joints in zip(hands.hands, landmarks.joints2d_px, strict=True)
        ]
    )
    focal_px, focal_given = focal_of(hands)
    centre_px = (boxes[:, :2] + boxes[:, 2:]) / 2
    half_side_px = (boxes[:, 2:] - boxes[:, :2]).max(1) / 2 * BOX_PADDING
    scale = fit.scale_px_per_mm / half_side_px
    translation = (fit.wrist_px - centre_px) / half_side_px[:, None]
    visible = _visible(fitter, fit, scale, translation)
    per_joint = np.linalg.norm(fit.joints3d_std_mm[:, 1:], axis=-1)
    return {
        "box_xyxy": boxes,
        "crop_xyxy": np.concatenate(
            [centre_px - half_side_px[:, None], centre_px + half_side_px[:, None]], 1
        ),
        "is_right": landmarks.is_right,
        "side_score": np.maximum(right, 1 - right),
        "joints3d_mm": fit.joints3d_mm,
        "joints3d_std_mm": fit.joints3d_std_mm,
        "joints2d_px": fit.joints2d_px,
        "joints2d_std_px": fit.joints2d_std_px,
        "vertices_mm": fit.vertices_mm,
        "vertices_std_mm": fit.vertices_std_mm,
        "pose": fit.pose,
        "betas": fit.betas,
        "camera": {
            "scale": scale,
            "rotation": np.zeros((len(hands), 3)),
            "translation": translation,
            "cam_t_mm": frames.camera_translation(
                fit.joints3d_mm, fit.joints2d_px, focal_px, hands.photo_size_px / 2
            ),
            "focal_px": focal_px,
            "focal_source": np.where(focal_given, "given", "assumed"),
        },
        "vertex_rgb": None,
        "vertex_visible": visible,
        "visible_fraction": visible.mean(1),
        "joint_std_mm": per_joint.mean(1),
        "max_joint_std_mm": per_joint.max(1),
        "vertex_std_mm": np.linalg.norm(fit.vertices_std_mm, axis=-1).mean(1),
    }


def _visible(
    fitter: HandFitter, fit: Fit, scale: NDArray[np.floating], translation: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Whether each vertex (n, V) is seen: not hidden by the hand itself."""
    points = torch.from_numpy(fit.vertices_mm * scale[:, None, None]).float()
    points[..., :2] += torch.from_numpy(translation[:, None]).float()
    faces = torch.from_numpy(fitter.hand.faces).long()
    face_ids = nearest_faces(points, faces, _RASTER_PX)
    return visible_vertices(face_ids, faces, points.shape[1]).numpy()
