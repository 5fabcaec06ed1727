"""Convert hands in crop axes, predicted or fitted, to label columns in the photo's camera axes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator import coordinates
from annotator.coordinates import CropFrame
from annotator.labels.hand_length import hand_length_stds_mm, hand_lengths_mm, position_covariance
from annotator.photos.crops import CropGeometry
from annotator.photos.view import View

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class CropHands:
    """n hands, wrist-relative, in the axes of their upright crops (`annotator.coordinates`), not mirrored."""

    is_right: NDArray[np.bool_]  # (n,)
    joints3d_mm: Floats  # (n, 21, 3)
    joints3d_std_mm: Floats  # (n, 21, 3)
    joints2d_px: Floats  # (n, 21, 2) pixels of the photo, or of the square that stands for a view
    joints2d_std_px: Floats  # (n, 21, 2)
    vertices_mm: Floats  # (n, V, 3); without a mesh V is 0
    vertices_std_mm: Floats  # (n, V, 3)
    visible: NDArray[np.bool_]  # (n, V)
    scale_per_mm: Floats  # (n,) crop half-sides per millimetre
    rotvec: Floats  # (n, 3) the weak-perspective camera's r
    translation: Floats  # (n, 2) crop half-sides
    pose: Floats | None = None  # (n, 48) for a right hand; for a left hand, of its mirror image
    betas: Floats | None = None  # (n, 10)


def crop_axes(geometry: CropGeometry) -> NDArray[np.float32]:
    """Return the crop axes (n, 3, 3) of each crop."""
    frame = CropFrame(geometry.centre_px, geometry.half_side_px, np.zeros(len(geometry), bool))
    axes = frame.axes(geometry.principal_px, geometry.focal_px)
    for k in through_lens(geometry.view):
        axes[k] = geometry.view[k].axes
    return axes.astype(np.float32)


def through_lens(views: NDArray[np.object_]) -> list[int]:
    """Return the numbers of hands that are seen through a lens: those with a view."""
    return [k for k, view in enumerate(views) if view is not None]


def seen_through_lens(
    hands: CropHands, geometry: CropGeometry, k: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return 2D joints and their std (21, 2) in the photo, and the wrist's position (3,) and its covariance (3, 3)."""
    view: View = geometry.view[k]
    points = (hands.joints2d_px[k] - geometry.centre_px[k]) / geometry.half_side_px[k]
    std = hands.joints2d_std_px[k] / geometry.half_side_px[k]
    # Joints beyond the lens have no slope; the square's own scale is near.
    slopes = np.nan_to_num(view.slopes(points), nan=float(geometry.half_side_px[k]))
    variance = (slopes**2 @ (std**2)[..., None])[..., 0]
    position = position_in_view(
        view, points, hands.joints3d_mm[k], hands.joints3d_std_mm[k], std * view.half_tan
    )
    return view.nearest_in_photo(points), np.sqrt(variance), *position


def position_in_view(
    view: View, points: Floats, joints_mm: Floats, std_mm: Floats, std_tan: Floats
) -> tuple[Floats, Floats]:
    """Return the wrist's position (3,) and its covariance (3, 3), camera axes, of a hand in a view.

    Args:
        view: a square in crop axes.
        points: (21, 2) of the joints, half-sides of the square.
        joints_mm: (21, 3) crop axes, wrist-relative. std_mm: theirs.
        std_tan: (21, 2) of the points, as tangents of angles.
    """
    # The view is the picture of a pinhole camera with focal length 1, in crop axes.
    seen, joints = (points * view.half_tan)[None], joints_mm[None]
    wrist = coordinates.camera_translation(joints, seen, np.ones(1), np.zeros((1, 2)))
    covariance = position_covariance(joints + wrist[:, None], std_mm[None], np.ones(1), std_tan[None])[0]
    return view.axes @ wrist[0], view.axes @ covariance @ view.axes.T


def label_columns(hands: CropHands, geometry: CropGeometry) -> dict[str, Any]:
    """Return the columns of `annotator.labels.schema` that depend only on the hands and their crops."""
    hands = _resized(hands, geometry.hand_length_mm)
    axes = crop_axes(geometry)
    joints3d_mm = coordinates.camera_from_crop(hands.joints3d_mm, axes)
    joints3d_std_mm = coordinates.rotated_std(hands.joints3d_std_mm, axes)
    camera_rotation = coordinates.rotation_matrices(hands.rotvec) @ axes.swapaxes(1, 2)
    pose = None
    if hands.pose is not None:
        # The pose is for a right hand; for a left hand, the camera's axes are mirrored first.
        shown_axes = np.where(hands.is_right[:, None, None], axes, coordinates.mirror_rotation(axes))
        wrist = coordinates.rotation_vectors(shown_axes @ coordinates.rotation_matrices(hands.pose[:, :3]))
        pose = np.concatenate([wrist, hands.pose[:, 3:]], 1).astype(hands.pose.dtype)
    half_side_px = geometry.half_side_px[:, None]
    cam_t_mm = coordinates.camera_translation(
        joints3d_mm, hands.joints2d_px, geometry.focal_px, geometry.principal_px
    )
    joints2d_px, joints2d_std_px = np.array(hands.joints2d_px), np.array(hands.joints2d_std_px)
    covariance = position_covariance(
        joints3d_mm + cam_t_mm[:, None], joints3d_std_mm, geometry.focal_px, joints2d_std_px
    )
    for k in through_lens(geometry.view):
        joints2d_px[k], joints2d_std_px[k], cam_t_mm[k], covariance[k] = seen_through_lens(hands, geometry, k)
    length_std_mm = np.where(
        np.isnan(geometry.hand_length_mm), hand_length_stds_mm(joints3d_mm, joints3d_std_mm), 0
    )
    return {
        "box_xyxy": geometry.box_xyxy.copy(),  # a copy, because callers may write to columns
        "crop_xyxy": np.concatenate(
            [geometry.centre_px - half_side_px, geometry.centre_px + half_side_px], 1
        ),
        "is_right": hands.is_right,
        "joints3d_mm": joints3d_mm,
        "joints3d_std_mm": joints3d_std_mm,
        "joints2d_px": joints2d_px,
        "joints2d_std_px": joints2d_std_px,
        "pose": pose,
        "betas": hands.betas,
        "camera": {
            "scale": hands.scale_per_mm,
            "rotation": coordinates.rotation_vectors(camera_rotation),
            "translation": hands.translation,
            "cam_t_mm": cam_t_mm,
            "focal_px": geometry.focal_px.copy(),
            "principal_px": geometry.principal_px.copy(),
            "focal_source": geometry.focal_source,
        },
        **summary_columns(hands.joints3d_mm, joints3d_std_mm, length_std_mm, covariance),
        **(_mesh_columns(hands, axes) if hands.vertices_mm.shape[1] else {}),
    }


def summary_columns(
    joints3d_mm: Floats, joints3d_std_mm: Floats, length_std_mm: Floats, covariance: Floats
) -> dict[str, Floats]:
    """Return the columns with a few numbers per hand that follow from n hands.

    Args:
        joints3d_mm: (n, 21, 3). joints3d_std_mm: theirs, camera axes.
        length_std_mm: (n,) of the lengths. covariance: (n, 3, 3) of the wrists' positions.
    """
    per_joint = np.linalg.norm(joints3d_std_mm[:, 1:], axis=-1)
    return {
        "joint_std_mm": per_joint.mean(1),
        "max_joint_std_mm": per_joint.max(1),
        "hand_length_mm": hand_lengths_mm(joints3d_mm),
        "hand_length_std_mm": length_std_mm,
        "cam_t_std_mm": np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)),
    }


def _mesh_columns(hands: CropHands, axes: Floats) -> dict[str, Any]:
    vertices_std_mm = coordinates.rotated_std(hands.vertices_std_mm, axes)
    return {
        "vertices_mm": coordinates.camera_from_crop(hands.vertices_mm, axes),
        "vertices_std_mm": vertices_std_mm,
        "vertex_visible": hands.visible,
        "visible_fraction": hands.visible.mean(1),
        "vertex_std_mm": np.linalg.norm(vertices_std_mm, axis=-1).mean(1),
    }


def _resized(hands: CropHands, length_mm: NDArray[np.float64]) -> CropHands:
    """Scale the hands whose length (n,) is given; their projections stay. NaN: unchanged."""
    if np.isnan(length_mm).all():
        return hands
    factor = length_mm / np.maximum(hand_lengths_mm(hands.joints3d_mm), 1e-3)
    factor = np.where(np.isnan(factor), 1, factor).astype(hands.joints3d_mm.dtype)
    names = ("joints3d_mm", "joints3d_std_mm", "vertices_mm", "vertices_std_mm")
    scaled: dict[str, Any] = {name: getattr(hands, name) * factor[:, None, None] for name in names}
    return replace(hands, **scaled, scale_per_mm=hands.scale_per_mm / factor)
