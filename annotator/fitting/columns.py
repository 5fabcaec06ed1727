"""Convert fits to label columns (`annotator.labels.schema`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from annotator.coordinates import assumed_focal_px, square_around
from annotator.fitting.hand_fit import Fit, HandFitter
from annotator.fitting.landmarks import Landmarks
from annotator.fitting.listed import ListedHands
from annotator.labels.crop_hands import CropHands, label_columns
from annotator.photos.crops import BOX_PADDING, CropGeometry, box_around_joints
from annotator.render import nearest_faces, visible_vertices

#: Side of the image in which vertex visibility is computed.
_RASTER_PX = 128


def fitted_columns(fitter: HandFitter, hands: ListedHands) -> dict[str, Any]:
    """Fit n hands and return their columns: name to array (n, ...).

    Like a network, a fit uses weak perspective: its 3D is in the axes of the crop around the hand.
    """
    points = np.array([listed.landmarks for listed in hands.hands], np.float64)
    right = np.array([np.nan if h.right_score is None else h.right_score for h in hands.hands], np.float64)
    landmarks = Landmarks(points[..., :2], points[..., 2], right >= 0.5)
    unknown = np.flatnonzero(np.isnan(right))
    if len(unknown):
        landmarks.is_right[unknown], right[unknown] = fitter.sides(landmarks[unknown])
    fit = fitter.fit(landmarks)
    geometry = _crop_geometry(hands, landmarks)
    scale = fit.scale_px_per_mm / geometry.half_side_px
    translation = (fit.wrist_px - geometry.centre_px) / geometry.half_side_px[:, None]
    fitted = CropHands(
        is_right=landmarks.is_right,
        joints3d_mm=fit.joints3d_mm,
        joints3d_std_mm=fit.joints3d_std_mm,
        joints2d_px=fit.joints2d_px,
        joints2d_std_px=fit.joints2d_std_px,
        vertices_mm=fit.vertices_mm,
        vertices_std_mm=fit.vertices_std_mm,
        visible=_visible(fitter, fit, scale, translation),
        scale_per_mm=scale,
        rotvec=np.zeros((len(hands), 3), np.float32),
        translation=translation,
        pose=fit.pose,
        betas=fit.betas,
    )
    return label_columns(fitted, geometry) | {"side_score": np.maximum(right, 1 - right), "vertex_rgb": None}


def _crop_geometry(hands: ListedHands, landmarks: Landmarks) -> CropGeometry:
    """Return the crops around n hands as `annotate` cuts them; without a box, around the known joints."""
    boxes = np.stack(
        [
            box_around_joints(joints) if listed.box_xyxy is None else np.array(listed.box_xyxy, np.float64)
            for listed, joints in zip(hands.hands, landmarks.joints2d_px, strict=True)
        ]
    )
    squares = [square_around(box, BOX_PADDING) for box in boxes]
    given = np.isfinite(hands.focal_px)
    assumed = [assumed_focal_px(int(w), int(h), photo_is_crop=False) for w, h in hands.photo_size_px]
    return CropGeometry(
        centre_px=np.stack([square.centre_px for square in squares]),
        half_side_px=np.array([square.half_side_px for square in squares]),
        box_xyxy=boxes,
        photo_size_px=hands.photo_size_px,
        focal_px=np.where(given, hands.focal_px, assumed),
        principal_px=hands.photo_size_px / 2,
        focal_source=np.where(given, "given", "assumed"),
        view=np.full(len(hands.hands), None),
        hand_length_mm=np.full(len(hands.hands), np.nan),
    )


def _visible(
    fitter: HandFitter, fit: Fit, scale: NDArray[np.floating], translation: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Return whether each vertex (n, V) is visible, not hidden by the hand itself."""
    points = torch.from_numpy(fit.vertices_mm * scale[:, None, None]).float()
    points[..., :2] += torch.from_numpy(translation[:, None]).float()
    faces = torch.from_numpy(fitter.hand.faces).long()
    face_ids = nearest_faces(points, faces, _RASTER_PX)
    return visible_vertices(face_ids, faces, points.shape[1]).numpy()
