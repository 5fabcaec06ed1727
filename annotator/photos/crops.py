"""Square crops of photos for the network, each with its position in the photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from annotator.coordinates import CropFrame, assumed_focal_px, square_around
from annotator.photos.camera import UNKNOWN, PhotoCamera
from annotator.photos.cut import cut
from annotator.photos.view import cut_view, view_of_box

#: The side of all hands; `auto`: determined per hand by the list, the detector or the network.
Side = Literal["auto", "left", "right"]

#: A crop's side over its box's longer side. Without a box, the crop is the whole photo, without padding.
BOX_PADDING = 1.3

#: A hand's box over the box of its 21 joints, which lie inside the hand.
BOX_OVER_JOINTS = 1.1


@dataclass
class CropGeometry:
    """The positions of n square crops in their photos, and the photos' cameras."""

    centre_px: NDArray[np.float64]  # (n, 2) photo pixels
    half_side_px: NDArray[np.float64]  # (n,)
    box_xyxy: NDArray[np.float64]  # (n, 4) the hand's box, photo pixels
    photo_size_px: NDArray[np.float64]  # (n, 2) width, height
    focal_px: NDArray[np.float64]  # (n,)
    principal_px: NDArray[np.float64]  # (n, 2) principal point
    focal_source: NDArray[np.str_]  # (n,) given, exif or assumed
    view: NDArray[np.object_]  # (n,) a `View` where the photo is not a pinhole camera's, else None
    hand_length_mm: NDArray[np.float64]  # (n,) given by the user; NaN: predicted

    def __len__(self) -> int:
        return len(self.centre_px)


@dataclass
class Crops(CropGeometry):
    """n square crops of one size, none mirrored.

    `pixels` may cover more than the crop that the other fields and labels refer to: `margin` times its side.
    """

    pixels: NDArray[np.uint8]  # (n, crop_px, crop_px, 3) RGB
    right_score: NDArray[np.float32]  # (n,) probability of a right hand; NaN: unknown
    detector_joints2d: NDArray[np.float64]  # (n, 21, 2) the detector's joints, crop coordinates; NaN: none

    def __getitem__(self, rows: Any) -> Crops:
        return Crops(*(getattr(self, f.name)[rows] for f in fields(self)))

    @staticmethod
    def stack(crops: Sequence[Crops]) -> Crops:
        """Concatenate crops of one size."""
        return Crops(*(np.concatenate([getattr(c, f.name) for c in crops]) for f in fields(Crops)))


def crop_photo(
    pixels: NDArray[np.uint8],
    width: int,
    height: int,
    crop_px: int,
    box_xyxy: Sequence[float] | None = None,
    right_score: float | None = None,
    margin: float = 1.0,
    hand_length_mm: float | None = None,
    camera: PhotoCamera = UNKNOWN,
    joints2d_px: NDArray[np.floating] | None = None,
) -> Crops:
    """Cut one hand out of a photo (n = 1).

    Args:
        pixels: (H, W, 3), the photo or a scaled-down version of it.
        width, height: size of the full-size photo in pixels.
        crop_px: side of the returned pixels.
        box_xyxy: the hand's box in photo pixels; without it, the crop is the whole photo.
        right_score: probability of a right hand, if known.
        margin: side of the area that the pixels cover, over the crop's side.
        hand_length_mm: length of the hand from wrist to middle fingertip along the bones, if known.
        camera: the photo's, as far as it is known.
        joints2d_px: (21, 2) that a detector found, photo pixels. Unused behind a lens, which bends them.

    Raises:
        PhotoError: the camera's lens shows nothing in the middle of the box.
    """
    photo_is_crop = box_xyxy is None
    box = np.array([0, 0, width, height] if box_xyxy is None else box_xyxy, np.float64)
    padding = 1.0 if photo_is_crop else BOX_PADDING
    view = None
    if camera.lens is None:
        frame = square_around(box, padding)
        wide = frame._replace(half_side_px=frame.half_side_px * margin)
        shown = cut(pixels, wide, crop_px, width)
    else:
        view = view_of_box(camera.lens, box.tolist(), padding)
        centre_px, half_side_px = view.square_px()
        frame = CropFrame(centre_px, np.float64(half_side_px), np.bool_(False))
        shown = cut_view(pixels, view, crop_px, width, margin)
    detector_joints2d = np.full((21, 2), np.nan)
    if joints2d_px is not None and view is None:
        detector_joints2d = frame.crop_from_photo(joints2d_px)
    focal_px = camera.focal_px or assumed_focal_px(width, height, photo_is_crop=photo_is_crop)
    principal_px = camera.principal_px or (width / 2, height / 2)
    return Crops(
        pixels=shown[None],
        centre_px=np.asarray(frame.centre_px)[None],
        half_side_px=np.array([frame.half_side_px]),
        box_xyxy=box[None],
        photo_size_px=np.array([[width, height]], np.float64),
        focal_px=np.array([focal_px]),
        principal_px=np.array([principal_px], np.float64),
        focal_source=np.array([camera.focal_source]),
        view=np.array([view], object),
        hand_length_mm=np.array([np.nan if hand_length_mm is None else hand_length_mm]),
        right_score=np.array([np.nan if right_score is None else right_score], np.float32),
        detector_joints2d=detector_joints2d[None],
    )


def box_around_joints(joints2d_px: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the hand's box (4,) xyxy around its joints (N, 2), in photo pixels; NaN joints are ignored."""
    low, high = np.nanmin(joints2d_px, 0), np.nanmax(joints2d_px, 0)
    centre, half = (low + high) / 2, (high - low) / 2 * BOX_OVER_JOINTS
    return np.concatenate([centre - half, centre + half])


def box_overlaps(box_xyxy: NDArray[np.floating], boxes_xyxy: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the intersection over union (m,) of a box (4,) with others (m, 4)."""
    low, high = np.maximum(box_xyxy[:2], boxes_xyxy[:, :2]), np.minimum(box_xyxy[2:], boxes_xyxy[:, 2:])
    shared = (high - low).clip(0).prod(1)
    areas = (box_xyxy[2:] - box_xyxy[:2]).prod() + (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1)
    overlaps: NDArray[np.floating] = shared / np.maximum(areas - shared, 1e-9)
    return overlaps
