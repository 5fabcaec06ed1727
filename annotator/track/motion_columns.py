"""A track's motion from label columns, and a smoothed motion as label columns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator import coordinates as frames
from annotator.coordinates import square_around
from annotator.labels.crop_hands import summary_columns, through_lens
from annotator.labels.hand_length import position_covariance
from annotator.photos.crops import BOX_PADDING, box_around_joints
from annotator.track.behind_lens import (
    Placement,
    fisheye_from_view,
    view_around,
    view_from_fisheye,
    wrist_in_view,
)
from annotator.track.columns import NEAREST
from annotator.track.motion import Motion

Floats = NDArray[np.floating]


def labels_motion(columns: dict[str, Any], views: NDArray[np.object_], rows: NDArray[np.int64]) -> Motion:
    """Return labels at some rows as a motion; row -1 stands for a frame without a label, and gives any numbers.

    `views` (n,) are those of the labels behind a lens, None for others.
    """
    camera, crop = columns["camera"], columns["crop_xyxy"][rows]
    half_px = (crop[:, 2] - crop[:, 0]) / 2
    centre_px = (crop[:, :2] + crop[:, 2:]) / 2
    scale_px = camera["scale"][rows].astype(np.float64) * half_px
    position_px = (centre_px + camera["translation"][rows] * half_px[:, None]).astype(np.float64)
    for k in through_lens(views[rows]):
        row = rows[k]
        label = Placement(camera["scale"][row], camera["translation"][row].astype(np.float64))
        scale_px[k], position_px[k] = fisheye_from_view(
            views[row], label, float(camera["focal_px"][row]), camera["principal_px"][row]
        )
    return Motion(
        pose=columns["pose"][rows].astype(np.float64),
        betas=columns["betas"][rows].astype(np.float64),
        joints3d_mm=columns["joints3d_mm"][rows],
        joints3d_std_mm=columns["joints3d_std_mm"][rows],
        joints2d_std_px=columns["joints2d_std_px"][rows],
        scale_px=scale_px,
        position_px=position_px,
    )


def track_columns(
    columns: dict[str, Any],
    views: NDArray[np.object_],
    rows: NDArray[np.int64],
    nearest: NDArray[np.int64],
    motion: Motion,
    is_right: bool,
    length_std_mm: Floats,
) -> dict[str, Any]:
    """Return the label columns of a track's T frames, but `vertex_std_mm` and those per vertex.

    Args:
        columns: of the sequence's labels. views: (n,) theirs behind a lens, None for others.
        rows: (T,) the label of each frame, -1 where there is none. nearest: (T,) one of the track that is near.
        motion: the smoothed track.
        is_right: its side.
        length_std_mm: (T,) of its length.
    """
    camera = columns["camera"]
    photos = _Photos(camera["focal_px"][nearest], camera["principal_px"][nearest])
    crops = _crops(columns, views, rows, nearest, motion, photos)
    projected = _projected(motion, crops, photos)
    result: dict[str, Any] = {
        "box_xyxy": crops.box_xyxy,
        "crop_xyxy": crops.crop_xyxy,
        "is_right": np.full(len(rows), is_right),
        "joints3d_mm": motion.joints3d_mm,
        "joints3d_std_mm": motion.joints3d_std_mm,
        "joints2d_px": projected.joints2d_px,
        "joints2d_std_px": motion.joints2d_std_px,
        "pose": motion.pose,
        "betas": motion.betas,
        "camera": {
            "scale": projected.scale,
            "rotation": crops.rotation,
            "translation": projected.translation,
            "cam_t_mm": projected.cam_t_mm,
            "focal_px": photos.focal_px,
            "principal_px": photos.principal_px,
            "focal_source": [camera["focal_source"][row] for row in nearest],
        },
        **summary_columns(motion.joints3d_mm, motion.joints3d_std_mm, length_std_mm, projected.covariance),
    }
    return result | {name: None if columns[name] is None else columns[name][nearest] for name in NEAREST}


class _Photos(NamedTuple):
    """The cameras of T photos."""

    focal_px: Floats  # (T,)
    principal_px: Floats  # (T, 2)


class _Crops(NamedTuple):
    """The boxes and crops of a track in T photos."""

    box_xyxy: Floats  # (T, 4)
    crop_xyxy: Floats  # (T, 4)
    rotation: Floats  # (T, 3) from camera axes to crop axes
    views: NDArray[np.object_]  # (T,) behind a lens, None for others


def _crops(
    columns: dict[str, Any],
    views: NDArray[np.object_],
    rows: NDArray[np.int64],
    nearest: NDArray[np.int64],
    motion: Motion,
    photos: _Photos,
) -> _Crops:
    """Return the crops of the labels, and in frames without a label those around the smoothed hand."""
    crops = _Crops(
        columns["box_xyxy"][nearest].copy(),
        columns["crop_xyxy"][nearest].copy(),
        columns["camera"]["rotation"][nearest].copy(),
        views[nearest],
    )
    box, crop, rotation, views = crops  # changed in place
    for k in np.flatnonzero(rows < 0).tolist():
        # Where the hand is in the photo depends little on the crop's axes: the nearest frame's find it.
        rotated = motion.joints3d_mm[k] @ frames.rotation_matrices(rotation[k].astype(np.float64)).T
        if views[k] is not None:
            hand = _placement(crops, motion, photos, k)
            box[k] = box_around_joints(views[k].nearest_in_photo(hand.scale * rotated[:, :2] + hand.position))
            views[k] = view_around(box[k], views[k])
            centre_px, half_side_px = views[k].square_px()
            axes = views[k].axes
        else:
            box[k] = box_around_joints(motion.scale_px[k] * rotated[:, :2] + motion.position_px[k])
            centre_px, half_side_px, *_ = square = square_around(box[k], BOX_PADDING)
            axes = square.axes(photos.principal_px[k], photos.focal_px[k])
        crop[k] = np.concatenate([centre_px - half_side_px, centre_px + half_side_px])
        rotation[k] = frames.rotation_vectors(axes.T[None])[0]
    return crops


class _Projected(NamedTuple):
    """A track in T photos and in front of their cameras."""

    scale: Floats  # (T,) of the weak-perspective camera in the crop
    translation: Floats  # (T, 2) likewise
    joints2d_px: Floats  # (T, 21, 2)
    cam_t_mm: Floats  # (T, 3)
    covariance: Floats  # (T, 3, 3) of cam_t_mm


def _projected(motion: Motion, crops: _Crops, photos: _Photos) -> _Projected:
    """Project the joints of a smoothed track, and locate its wrist."""
    crop = crops.crop_xyxy
    half_px, centre_px = (crop[:, 2] - crop[:, 0]) / 2, (crop[:, :2] + crop[:, 2:]) / 2
    matrices = frames.rotation_matrices(crops.rotation.astype(np.float64))
    rotated = motion.joints3d_mm @ matrices.swapaxes(1, 2)
    joints2d_px = motion.scale_px[:, None, None] * rotated[..., :2] + motion.position_px[:, None]
    cam_t_mm = frames.camera_translation(
        motion.joints3d_mm, joints2d_px, photos.focal_px, photos.principal_px
    )
    covariance = position_covariance(
        motion.joints3d_mm + cam_t_mm[:, None],
        motion.joints3d_std_mm,
        photos.focal_px,
        motion.joints2d_std_px,
    )
    scale, translation = motion.scale_px / half_px, (motion.position_px - centre_px) / half_px[:, None]
    for k in through_lens(crops.views):
        view = crops.views[k]
        hand = _placement(crops, motion, photos, k)
        points = hand.scale * rotated[k, :, :2] + hand.position
        scale[k], translation[k], joints2d_px[k] = hand.scale, hand.position, view.nearest_in_photo(points)
        cam_t_mm[k], covariance[k] = wrist_in_view(
            view, points, motion.joints3d_mm[k], motion.joints3d_std_mm[k], motion.joints2d_std_px[k]
        )
    return _Projected(scale, translation, joints2d_px, cam_t_mm, covariance)


def _placement(crops: _Crops, motion: Motion, photos: _Photos, k: int) -> Placement:
    """Return where frame k of a smoothed track lies in its view."""
    smoothed = Placement(float(motion.scale_px[k]), motion.position_px[k])
    return view_from_fisheye(crops.views[k], smoothed, float(photos.focal_px[k]), photos.principal_px[k])
