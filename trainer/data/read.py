"""Read rows of example files as batches: decode, cut, mirror left hands, and move every target into the crop."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from annotator.coordinates import (
    CropFrame,
    axes_of_ray,
    crop_from_camera,
    mirror_points,
    rotated_std,
    square_around,
)
from annotator.labels.arrays import array_of
from annotator.photos.crops import BOX_PADDING, box_around_joints
from annotator.photos.cut import OUTSIDE_RGB, cut
from annotator.photos.decode import decode_photo
from annotator.photos.errors import PhotoError
from trainer.batch import Batch
from trainer.config import Target
from trainer.data.examples import NO_HAND

#: Columns of a row for training.
COLUMNS = (
    *("image", "status", "hand_mask", "width", "height", "box_xyxy", "box_source", "is_right"),
    *("joints2d_px", "joints2d_std_px", "joints3d_mm", "joints3d_std_mm", "guess3d_mm"),
    *("vertices_mm", "vertices_std_mm", "joint_visible", "joint_visible_score", "camera"),
)

#: More columns, for evaluation and submission.
FACTS = ("image_id", "source_index", "wrist_mm", "camera_matrix")


@dataclass(frozen=True)
class Facts:
    """The data of an example besides its targets; None where unknown."""

    image_id: str
    frame: CropFrame  # of the tight crop
    source_index: int | None
    wrist_mm: np.ndarray | None  # (3,) camera axes
    camera_matrix: np.ndarray | None  # (3, 3)


class Rows:
    """Columns of examples, with values as arrays."""

    def __init__(self, table: pa.Table) -> None:
        self.count = table.num_rows
        self.columns = {name: table.column(name).combine_chunks() for name in table.column_names}

    def array(self, name: str, row: int) -> np.ndarray | None:
        """Return a nested fixed-size list of numbers as an array, or None for null."""
        value = self.columns[name][row] if name in self.columns else None
        if value is None or not value.is_valid:
            return None
        return np.asarray(array_of(value.values), np.float64)

    def scalar(self, name: str, row: int) -> Any:
        """Return the value of any other column."""
        return self.columns[name][row].as_py() if name in self.columns else None


def read_example(
    rows: Rows, row: int, size_px: int, margin: float, targets: tuple[Target, ...], vertex_count: int
) -> Batch:
    """Return one example as a batch of one: `size_px` pixels across the hand's padded box times `margin`.

    A photo that can't be decoded becomes a crop of the padding colour without a hand, so that training continues.
    """
    batch = Batch.empty(1, size_px, vertex_count)
    frame = frame_of(rows, row, margin)
    width, height = rows.scalar("width", row), rows.scalar("height", row)
    mirrored = bool(np.all(frame.mirrored))
    # Minimum side of the decoded photo for a crop at full resolution.
    needed_px = int(size_px * min(width, height) / (2 * frame.half_side_px)) + 1
    try:
        photo = decode_photo(rows.scalar("image", row), needed_px)
    except (PhotoError, TypeError):
        batch.image[:] = torch.tensor(OUTSIDE_RGB, dtype=torch.uint8).view(3, 1, 1)
        batch.has_hand[:], batch.hand_mask[:] = False, 0
        return batch
    batch.image[0] = _pixels(cut(photo.pixels, frame, size_px, width), mirrored)
    if rows.scalar("status", row) == NO_HAND:
        batch.has_hand[:], batch.hand_mask[:] = False, 0
        return batch
    axes = _read_camera(batch, rows, row, frame)
    if "joints2d" in targets:
        _read_joints2d(batch, rows, row, frame)
    for name in ("joints3d", "vertices", "guess3d"):
        if name in targets:
            _read_points(batch, rows, row, name, axes, mirrored)
    visible, score = (rows.scalar(name, row) for name in ("joint_visible", "joint_visible_score"))
    if visible is not None and score is None:  # a score marks a prediction
        batch.joint_visible[0] = torch.tensor(visible)
        batch.has_joint_visible[:] = True
    mask = rows.scalar("hand_mask", row) if "hand_mask" in targets else None
    if mask is None:
        pixels = np.full_like(photo.pixels, 255)  # no hand beyond the photo's edge
    else:
        pixels = np.asarray(Image.open(io.BytesIO(mask)).convert("RGB"))
        pixels = pixels if pixels.shape[:2] == (height, width) else np.zeros_like(pixels)
        batch.has_hand_mask[0] = True
    batch.hand_mask[0] = _pixels(_cut_mask(pixels, frame, size_px, width), mirrored)[:1]
    return batch


def _read_camera(batch: Batch, rows: Rows, row: int, frame: CropFrame) -> np.ndarray:
    """Set the crop's ray and size behind the photo's camera, if known; return the crop's axes in the camera's."""
    camera = rows.scalar("camera", row)
    if camera is None or not camera["focal_px"] or camera["principal_px"] is None:
        return np.eye(3)
    ray = (np.asarray(frame.centre_px) - camera["principal_px"]) / camera["focal_px"]
    batch.ray[0] = torch.from_numpy(mirror_points(ray) if np.all(frame.mirrored) else ray)
    batch.half_side_tan[0] = float(frame.half_side_px) / camera["focal_px"]
    return np.asarray(axes_of_ray(ray))


def _read_joints2d(batch: Batch, rows: Rows, row: int, frame: CropFrame) -> None:
    joints2d_px, std_px = rows.array("joints2d_px", row), rows.array("joints2d_std_px", row)
    if joints2d_px is None:
        return
    joints2d = frame.crop_from_photo(joints2d_px)
    known = np.asarray(np.isfinite(joints2d).all(1))
    batch.joints2d[0] = torch.from_numpy(np.where(known[:, None], joints2d, 0)).float()
    batch.has_joints2d[0] = torch.from_numpy(known)
    if std_px is not None:
        std = _root_mean_square(std_px / float(frame.half_side_px))
        batch.joints2d_std[0] = torch.from_numpy(np.nan_to_num(std))


def _read_points(batch: Batch, rows: Rows, row: int, name: str, axes: np.ndarray, mirrored: bool) -> None:
    """Set the 3D targets of a name and their std. The network sees only the crop, so targets are in crop axes."""
    points, std_mm = rows.array(f"{name}_mm", row), rows.array(f"{name}_std_mm", row)
    if points is None:
        return
    points = crop_from_camera(points, axes)
    points = mirror_points(points) if mirrored else points
    getattr(batch, f"{name}_mm")[0] = torch.from_numpy(points).float()
    getattr(batch, f"has_{name}")[0] = True
    if std_mm is not None:
        std_mm = rotated_std(std_mm, axes.T)
        # Augmentation rotates photos in the image plane, so x and y share one std.
        across = _root_mean_square(std_mm[:, :2])
        std = np.stack([across, across, std_mm[:, 2].astype(np.float32)], 1)
        # A label without a finite std does not count.
        getattr(batch, f"has_{name}")[0] = bool(np.isfinite(std).all())
        getattr(batch, f"{name}_std_mm")[0] = torch.from_numpy(np.nan_to_num(std, posinf=0))


def facts_of(rows: Rows, row: int) -> Facts:
    """Return the facts of one example."""
    wrist_mm, matrix = rows.array("wrist_mm", row), rows.array("camera_matrix", row)
    return Facts(
        image_id=rows.scalar("image_id", row) or "",
        frame=frame_of(rows, row),
        source_index=rows.scalar("source_index", row),
        wrist_mm=None if wrist_mm is None else wrist_mm.reshape(3),
        camera_matrix=None if matrix is None else matrix.reshape(3, 3),
    )


def frame_of(rows: Rows, row: int, margin: float = 1.0) -> CropFrame:
    """Return the crop of an example in its photo, cut as in `annotate`, `margin` times as wide."""
    box, joints2d_px = rows.array("box_xyxy", row), rows.array("joints2d_px", row)
    width, height = rows.scalar("width", row), rows.scalar("height", row)
    if box is not None:
        padding = 1.0 if rows.scalar("box_source", row) == "photo" else BOX_PADDING
        frame = square_around(box.reshape(4), padding * margin)
    elif joints2d_px is not None and np.isfinite(joints2d_px).any():
        frame = square_around(box_around_joints(joints2d_px), BOX_PADDING * margin)
    else:
        frame = square_around([0, 0, width, height], margin)
    if not frame.half_side_px > 0:  # an empty box
        frame = square_around([0, 0, width, height], margin)
    return frame._replace(mirrored=np.bool_(rows.scalar("is_right", row) is False))


def _root_mean_square(std: np.ndarray) -> np.ndarray:
    """Return the root mean square of each point's coordinates, (N, 2) to (N,)."""
    return np.sqrt((std**2).mean(1)).astype(np.float32)


def _pixels(crop: np.ndarray, mirrored: bool) -> torch.Tensor:
    """Convert (S, S, 3) to (3, S, S), mirrored on request."""
    return torch.from_numpy(np.array(crop[:, ::-1] if mirrored else crop)).permute(2, 0, 1)


def _cut_mask(mask: np.ndarray, frame: CropFrame, size_px: int, width: int) -> np.ndarray:
    """Cut a mask with zero outside the photo: subtract the padding colour that `cut` puts there."""
    crop = cut(mask, frame, size_px, width).astype(np.int16)
    outside = cut(np.zeros_like(mask), frame, size_px, width).astype(np.int16)
    return (crop - outside).clip(0, 255).astype(np.uint8)
