"""Label columns of a sequence's hands as arrays, and a smoothed track as label columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator import coordinates as frames
from annotator.coordinates import CropFrame, square_around
from annotator.photos.crops import BOX_PADDING, box_around_joints
from annotator.track.motion import Motion

Floats = NDArray[np.floating]

#: Columns whose values of a filled frame, or of one of the other side, are the nearest labelled frame's. So are the
#: wide `vertex_rgb` and `vertex_visible`.
NEAREST = ("visible_fraction", "joint_visible", "joint_visible_score", "hidden_joints")

_VECTORS = (
    *("box_xyxy", "crop_xyxy", "joints3d_mm", "joints3d_std_mm", "joints2d_px", "joints2d_std_px"),
    *("pose", "betas"),
)
_SCALARS = ("joint_std_mm", "max_joint_std_mm", "vertex_std_mm")

#: Every column but the wide ones that holds an array for each hand; the others are values of rows.
OF_HANDS = (*_VECTORS, *_SCALARS, *NEAREST, "is_right", "camera")


def hand_columns(table: pa.Table) -> dict[str, Any]:
    """Return the columns `OF_HANDS` of a table of hands: arrays (n, ...), None where one is null, the camera's a
    mapping.
    """
    columns: dict[str, Any] = {
        name: _array(table[name]) if name in table.column_names else None  # older labels lack the newest
        for name in OF_HANDS
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
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if array.null_count:
        return None
    shape = [len(array)]
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False).reshape(shape)


def picked_columns(columns: dict[str, Any], rows: NDArray[np.int64]) -> dict[str, Any]:
    """Return the columns of some hands."""

    def picked(values: Any) -> Any:
        if values is None or isinstance(values, np.ndarray):
            return values if values is None else values[rows]
        return picked_columns(values, rows) if isinstance(values, dict) else [values[row] for row in rows]

    return {name: picked(values) for name, values in columns.items()}


def labels_motion(columns: dict[str, Any], rows: NDArray[np.int64]) -> Motion:
    """Return labels at some rows as a motion; row -1 stands for a frame without a label, and gives any numbers."""
    camera, crop = columns["camera"], columns["crop_xyxy"][rows]
    half_px = (crop[:, 2] - crop[:, 0]) / 2
    centre_px = (crop[:, :2] + crop[:, 2:]) / 2
    return Motion(
        pose=columns["pose"][rows].astype(np.float64),
        betas=columns["betas"][rows].astype(np.float64),
        joints3d_mm=columns["joints3d_mm"][rows],
        joints3d_std_mm=columns["joints3d_std_mm"][rows],
        joints2d_std_px=columns["joints2d_std_px"][rows],
        scale_px=camera["scale"][rows].astype(np.float64) * half_px,
        place_px=(centre_px + camera["translation"][rows] * half_px[:, None]).astype(np.float64),
    )


def track_columns(
    columns: dict[str, Any],
    rows: NDArray[np.int64],
    nearest: NDArray[np.int64],
    motion: Motion,
    is_right: bool,
) -> dict[str, Any]:
    """Return the label columns of a track's T frames, but `vertex_std_mm` and the wide ones.

    Args:
        columns: of the sequence's labels.
        rows: (T,) the label of each frame, -1 where there is none. nearest: (T,) one of the track that is near.
        motion: the smoothed track.
        is_right: its side.
    """
    labelled = rows >= 0
    camera = columns["camera"]
    focal_px, principal_px = camera["focal_px"][nearest], camera["principal_px"][nearest]
    box, crop = columns["box_xyxy"][nearest].copy(), columns["crop_xyxy"][nearest].copy()
    rotation = camera["rotation"][nearest].copy()
    for k in np.flatnonzero(~labelled):
        # Where the hand is in the photo depends little on the crop's axes: the nearest frame's find it.
        turned = motion.joints3d_mm[k] @ frames.rotation_matrices(rotation[k].astype(np.float64)).T
        box[k] = box_around_joints(motion.scale_px[k] * turned[:, :2] + motion.place_px[k])
        square = square_around(box[k], BOX_PADDING)
        crop[k] = np.concatenate(
            [square.centre_px - square.half_side_px, square.centre_px + square.half_side_px]
        )
        axes = CropFrame(square.centre_px, square.half_side_px, np.bool_(False)).axes(
            principal_px[k], focal_px[k]
        )
        rotation[k] = frames.rotation_vectors(axes.T[None])[0]
    half_px, centre_px = (crop[:, 2] - crop[:, 0]) / 2, (crop[:, :2] + crop[:, 2:]) / 2
    turned = motion.joints3d_mm @ frames.rotation_matrices(rotation.astype(np.float64)).swapaxes(1, 2)
    joints2d_px = motion.scale_px[:, None, None] * turned[..., :2] + motion.place_px[:, None]
    per_joint = np.linalg.norm(motion.joints3d_std_mm[:, 1:], axis=-1)
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
            "scale": motion.scale_px / half_px,
            "rotation": rotation,
            "translation": (motion.place_px - centre_px) / half_px[:, None],
            "cam_t_mm": frames.camera_translation(motion.joints3d_mm, joints2d_px, focal_px, principal_px),
            "focal_px": focal_px,
            "principal_px": principal_px,
            "focal_source": [camera["focal_source"][row] for row in nearest],
        },
        "joint_std_mm": per_joint.mean(1),
        "max_joint_std_mm": per_joint.max(1),
    }
    return result | {name: None if columns[name] is None else columns[name][nearest] for name in NEAREST}
