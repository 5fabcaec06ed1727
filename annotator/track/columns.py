"""Label columns of a sequence's hands as arrays, and a smoothed track as label columns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator import coordinates as frames
from annotator.coordinates import square_around
from annotator.labels.arrays import array_of
from annotator.labels.crop_hands import position_in_view, summary_columns, through_lens
from annotator.labels.hand_length import hand_length_stds_mm, hand_lengths_mm, position_covariance
from annotator.lens import Lens
from annotator.photos.crops import BOX_PADDING, box_around_joints
from annotator.photos.errors import PhotoError
from annotator.photos.view import View, view_of_box
from annotator.track.motion import Motion
from annotator.track.shape import Shape

Floats = NDArray[np.floating]

#: Columns that a filled frame, or one of the other side, copies from the nearest labelled frame. So it does
#: `vertex_rgb` and `vertex_visible`.
NEAREST = ("visible_fraction", "joint_visible", "joint_visible_score", "hidden_joints")

_VECTORS = (
    *("box_xyxy", "crop_xyxy", "joints3d_mm", "joints3d_std_mm", "joints2d_px", "joints2d_std_px"),
    *("pose", "betas", "cam_t_std_mm"),
)
_LENGTHS = ("hand_length_mm", "hand_length_std_mm")
_SCALARS = ("joint_std_mm", "max_joint_std_mm", "vertex_std_mm", *_LENGTHS)

#: Columns that every tracked set has.
COLUMNS_OF_EVERY_TRACK = (*_LENGTHS, "cam_t_std_mm")

#: Minimum cosine between a point's ray and a view's axis; smoothing may move a point beyond any view.
_MIN_Z = 0.1

#: Columns with an array per hand, without those per vertex; the others are values of rows.
HAND_COLUMNS = (*_VECTORS, *_SCALARS, *NEAREST, "is_right", "camera")


def columns_of_hands(table: pa.Table) -> dict[str, Any]:
    """Return the columns `HAND_COLUMNS` of a table of hands: arrays (n, ...), None where one is null, the camera's a
    mapping.
    """
    columns: dict[str, Any] = {
        name: _array(table[name]) if name in table.column_names else None  # older labels lack the newest
        for name in HAND_COLUMNS
        if name != "camera"
    }
    camera = table["camera"].combine_chunks()
    columns["camera"] = {
        field.name: camera.field(k).to_pylist() if pa.types.is_string(field.type) else _array(camera.field(k))
        for k, field in enumerate(camera.type)
    }
    return columns


def _array(column: Any) -> Any:
    """Return an array (n, ...); None where any is null."""
    return None if column.null_count else array_of(column)


def picked_columns(columns: dict[str, Any], rows: NDArray[np.int64]) -> dict[str, Any]:
    """Return the columns of some hands."""

    def picked(values: Any) -> Any:
        if values is None or isinstance(values, np.ndarray):
            return values if values is None else values[rows]
        return picked_columns(values, rows) if isinstance(values, dict) else [values[row] for row in rows]

    return {name: picked(values) for name, values in columns.items()}


def labels_motion(columns: dict[str, Any], views: NDArray[np.object_], rows: NDArray[np.int64]) -> Motion:
    """Return labels at some rows as a motion; row -1 stands for a frame without a label, and gives any numbers.

    `views` (n,) are those of the labels behind a lens, None for others.
    """
    camera, crop = columns["camera"], columns["crop_xyxy"][rows]
    half_px = (crop[:, 2] - crop[:, 0]) / 2
    centre_px = (crop[:, :2] + crop[:, 2:]) / 2
    scale_px = camera["scale"][rows].astype(np.float64) * half_px
    place_px = (centre_px + camera["translation"][rows] * half_px[:, None]).astype(np.float64)
    for k in through_lens(views[rows]):
        view, focal_px = views[rows[k]], float(camera["focal_px"][rows[k]])
        on_plane = view.half_tan * camera["translation"][rows[k]].astype(np.float64)
        place_px[k] = _equidistant_fisheye(focal_px, camera["principal_px"][rows[k]]).project(
            view.axes @ [*on_plane, 1]
        )
        scale_px[k] = camera["scale"][rows[k]] * view.half_tan * focal_px
    return Motion(
        pose=columns["pose"][rows].astype(np.float64),
        betas=columns["betas"][rows].astype(np.float64),
        joints3d_mm=columns["joints3d_mm"][rows],
        joints3d_std_mm=columns["joints3d_std_mm"][rows],
        joints2d_std_px=columns["joints2d_std_px"][rows],
        scale_px=scale_px,
        place_px=place_px,
    )


def _equidistant_fisheye(focal_px: float, principal_px: Floats) -> Lens:
    """Return a fisheye in whose photo distances are angles: it shows every direction, so any place has pixels there."""
    cx, cy = (float(value) for value in principal_px)
    return Lens(focal_px, focal_px, cx, cy, "fisheye")


def track_lengths(
    columns: dict[str, Any], nearest: NDArray[np.int64], motion: Motion, shape: Shape | None
) -> tuple[Floats, Floats]:
    """Return the lengths (T,) of a smoothed hand and their std: given ones, its person's, or its own."""
    own_mm = hand_lengths_mm(motion.joints3d_mm)
    own_std_mm = hand_length_stds_mm(motion.joints3d_mm, motion.joints3d_std_mm)
    if shape is not None and shape.length_mm is not None:
        own_mm, own_std_mm = (
            np.full(len(nearest), shape.length_mm),
            np.full(len(nearest), shape.length_std_mm),
        )
    length, std = (columns[name] for name in _LENGTHS)
    if length is None or std is None:
        return own_mm, own_std_mm
    is_given = std[nearest] == 0
    return np.where(is_given, length[nearest], own_mm), np.where(is_given, 0, own_std_mm)


def resized(motion: Motion, factors: Floats) -> Motion:
    """Return a track of another size (T,) that looks the same in the photo."""
    size = factors[:, None, None].astype(motion.joints3d_mm.dtype)
    return replace(
        motion,
        joints3d_mm=motion.joints3d_mm * size,
        joints3d_std_mm=motion.joints3d_std_mm * size,
        scale_px=motion.scale_px / factors,
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
    labelled, views = rows >= 0, views[nearest]
    camera = columns["camera"]
    focal_px, principal_px = camera["focal_px"][nearest], camera["principal_px"][nearest]
    box, crop = columns["box_xyxy"][nearest].copy(), columns["crop_xyxy"][nearest].copy()
    rotation = camera["rotation"][nearest].copy()
    for k in np.flatnonzero(~labelled).tolist():
        # Where the hand is in the photo depends little on the crop's axes: the nearest frame's find it.
        turned = motion.joints3d_mm[k] @ frames.rotation_matrices(rotation[k].astype(np.float64)).T
        if views[k] is not None:
            weak = _weak_in_view(views[k], motion, k, focal_px[k], principal_px[k])
            box[k] = box_around_joints(views[k].nearest_in_photo(weak.scale * turned[:, :2] + weak.place))
            views[k] = _view_around(box[k], views[k])
            centre_px, half_side_px = views[k].square_px()
            axes = views[k].axes
        else:
            box[k] = box_around_joints(motion.scale_px[k] * turned[:, :2] + motion.place_px[k])
            centre_px, half_side_px, *_ = square = square_around(box[k], BOX_PADDING)
            axes = square.axes(principal_px[k], focal_px[k])
        crop[k] = np.concatenate([centre_px - half_side_px, centre_px + half_side_px])
        rotation[k] = frames.rotation_vectors(axes.T[None])[0]
    half_px, centre_px = (crop[:, 2] - crop[:, 0]) / 2, (crop[:, :2] + crop[:, 2:]) / 2
    turned = motion.joints3d_mm @ frames.rotation_matrices(rotation.astype(np.float64)).swapaxes(1, 2)
    joints2d_px = motion.scale_px[:, None, None] * turned[..., :2] + motion.place_px[:, None]
    cam_t_mm = frames.camera_translation(motion.joints3d_mm, joints2d_px, focal_px, principal_px)
    covariance = position_covariance(
        motion.joints3d_mm + cam_t_mm[:, None], motion.joints3d_std_mm, focal_px, motion.joints2d_std_px
    )
    scale, translation = motion.scale_px / half_px, (motion.place_px - centre_px) / half_px[:, None]
    for k in through_lens(views):
        weak = _weak_in_view(views[k], motion, k, focal_px[k], principal_px[k])
        points = weak.scale * turned[k, :, :2] + weak.place
        scale[k], translation[k], joints2d_px[k] = weak.scale, weak.place, views[k].nearest_in_photo(points)
        cam_t_mm[k], covariance[k] = _position_in_view(
            views[k], points, motion.joints3d_mm[k], motion.joints3d_std_mm[k], motion.joints2d_std_px[k]
        )
    result: dict[str, Any] = {
        "box_xyxy": box,
        "crop_xyxy": crop,
        "is_right": np.full(len(rows), is_right),
        "joints3d_mm": motion.joints3d_mm,
        "joints3d_std_mm": motion.joints3d_std_mm,
        "joints2d_px": joints2d_px,
        "joints2d_std_px": motion.joints2d_std_px,
        "pose": motion.pose,
        "betas": motion.betas,
        "camera": {
            "scale": scale,
            "rotation": rotation,
            "translation": translation,
            "cam_t_mm": cam_t_mm,
            "focal_px": focal_px,
            "principal_px": principal_px,
            "focal_source": [camera["focal_source"][row] for row in nearest],
        },
        **summary_columns(motion.joints3d_mm, motion.joints3d_std_mm, length_std_mm, covariance),
    }
    return result | {name: None if columns[name] is None else columns[name][nearest] for name in NEAREST}


class _WeakCamera(NamedTuple):
    """A weak-perspective camera in a view."""

    scale: float  # half-sides per millimetre
    place: Floats  # (2,) half-sides


def _weak_in_view(view: View, motion: Motion, k: int, focal_px: float, principal_px: Floats) -> _WeakCamera:
    """Return the camera of frame k of a smoothed track in a view; see `labels_motion`."""
    x, y, z = _equidistant_fisheye(float(focal_px), principal_px).rays(motion.place_px[k]) @ view.axes
    place = np.array([x, y]) / max(z, _MIN_Z) / view.half_tan
    return _WeakCamera(float(motion.scale_px[k]) / (view.half_tan * float(focal_px)), place)


def _view_around(box_xyxy: Floats, nearest: View) -> View:
    """Return the view of a box; `nearest` where the lens shows nothing in its middle."""
    try:
        return view_of_box(nearest.lens, box_xyxy.tolist(), BOX_PADDING)
    except PhotoError:
        return nearest


def _position_in_view(
    view: View, points: Floats, joints_mm: Floats, std_mm: Floats, std_px: Floats
) -> tuple[Floats, Floats]:
    """Return the wrist's place (3,) and its covariance (3, 3), of joints (21, 3) that are at `points` of a view."""
    # Joints beyond the lens have no slope; that of the middle is near.
    areas = np.abs(np.linalg.det(np.nan_to_num(view.slopes(points))))
    px_per_tan = np.sqrt(np.where(areas > 0, areas, view.square_px()[1] ** 2))[:, None] / view.half_tan
    return position_in_view(
        view, points, joints_mm @ view.axes, frames.turned_std(std_mm, view.axes.T), std_px / px_per_tan
    )
