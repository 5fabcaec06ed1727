"""Convert predictions to label columns: back from mirrored left hands, with calibrated std, in camera axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from annotator.coordinates import CropFrame, camera_from_crop, mirror_points, mirror_rotvec
from annotator.labels.crop_hands import CropHands, crop_axes, label_columns
from annotator.model.checkpoint import Checkpoint
from annotator.model.network import Prediction
from annotator.photos.crops import Crops
from annotator.runtime.device import numpy_of


def predicted_columns(
    prediction: Prediction, crops: Crops, mirrored: NDArray[np.bool_], checkpoint: Checkpoint
) -> dict[str, Any]:
    """Return the label columns of n predicted hands, name to array (n, ...); `mirrored` (n,) are left hands."""
    calibration = checkpoint.info.calibration
    frame = CropFrame(crops.centre_px, crops.half_side_px, mirrored)
    joints3d_std_mm = calibration.joints3d(numpy_of(prediction.joints3d.std_mm))
    joints3d_std_mm[:, 0] = 0  # the wrist is the origin by definition
    variance2d = numpy_of(prediction.joints2d_covariance.diagonal(dim1=-2, dim2=-1))
    camera, prior = prediction.camera, prediction.prior
    rotvec = numpy_of(camera.rotvec)
    hands = CropHands(
        is_right=~mirrored,
        joints3d_mm=_mirror_where(numpy_of(prediction.joints3d.mean_mm), mirrored),
        joints3d_std_mm=joints3d_std_mm,
        joints2d_px=frame.photo_from_crop(numpy_of(prediction.joints2d)),
        joints2d_std_px=calibration.joints2d(np.sqrt(variance2d)) * crops.half_side_px[:, None, None],
        vertices_mm=_mirror_where(numpy_of(prediction.vertices.mean_mm), mirrored),
        vertices_std_mm=calibration.vertices(numpy_of(prediction.vertices.std_mm)),
        visible=numpy_of(prediction.visible),
        scale_per_mm=numpy_of(camera.scale_per_mm),
        rotvec=np.where(mirrored[:, None], mirror_rotvec(rotvec), rotvec),
        translation=_mirror_where(numpy_of(camera.translation), mirrored),
        pose=None if prior is None else numpy_of(prior.pose()),
        betas=None if prior is None else numpy_of(prior.betas),
    )
    rgb = None if prediction.rgb is None else numpy_of((prediction.rgb * 255).round())
    if rgb is not None and np.isfinite(rgb).all():  # a byte has no NaN
        rgb = rgb.astype(np.uint8)
    columns = label_columns(hands, crops) | _visibility(prediction)
    return columns | {"detection_score": numpy_of(prediction.is_hand), "vertex_rgb": rgb}


def sample_columns(
    vertices_mm: torch.Tensor,
    joints3d_mm: torch.Tensor,
    crops: Crops,
    mirrored: NDArray[np.bool_],
    size: NDArray[np.float32],
) -> dict[str, Any]:
    """Return the label columns of samples.

    Args:
        vertices_mm: (n, S, V, 3) crop axes, mirrored for left hands. joints3d_mm: (n, S, 21, 3) likewise.
        crops: the n crops. mirrored: (n,) the left hands.
        size: (n,) factor on the hands' size.
    """
    axes = crop_axes(crops)[:, None]
    columns = {}
    for name, points in (("joints3d", joints3d_mm), ("vertices", vertices_mm)):
        points_mm = _mirror_where(numpy_of(points), mirrored) * size[:, None, None, None]
        columns[f"{name}_samples_mm"] = camera_from_crop(points_mm, axes)
    return columns


def _visibility(prediction: Prediction) -> dict[str, Any]:
    """Return the columns of visible joints; null from a network that does not predict them."""
    if prediction.joint_visible_logit is None:
        return dict.fromkeys(("joint_visible", "joint_visible_score", "hidden_joints"))
    score = numpy_of(prediction.joint_visible_logit.sigmoid())
    visible = score >= 0.5
    return {"joint_visible": visible, "joint_visible_score": score, "hidden_joints": (~visible).sum(1)}


def _mirror_where(points: np.ndarray, mirrored: NDArray[np.bool_]) -> np.ndarray:
    if not mirrored.any():
        return points
    where = mirrored.reshape(-1, *(1,) * (points.ndim - 1))
    return np.where(where, mirror_points(points), points)
