"""Photos given in Python, as arrays or paths, and the crops of their hands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from annotator.errors import UserError
from annotator.photos.camera import PhotoCamera, exif_camera
from annotator.photos.crops import Crops, crop_photo
from annotator.photos.decode import Photo, decode_photo, read_photo
from annotator.sources.camera import given_camera
from annotator.sources.entry import Camera


def crops_of_photos(
    images: Sequence[np.ndarray | str | Path],
    crop_px: int,
    margin: float,
    boxes_xyxy: Sequence[Sequence[float]] | None = None,
    cameras: Sequence[Camera | None] | None = None,
) -> list[Crops]:
    """Return the crop of the hand in each photo.

    Args:
        images: arrays (H, W, 3) uint8 RGB, or paths.
        crop_px: side of a crop, pixels. margin: its square over the square around the box.
        boxes_xyxy: the hand's box in each photo, in pixels. Default: the photo itself is the crop.
        cameras: of each photo; None where it is not known. Default: from EXIF, else assumed.

    Raises:
        PhotoError: a photo that can't be read.
        UserError: an array that is not (H, W, 3) uint8, an impossible camera, or lists of different lengths.
    """
    cameras = [None] * len(images) if cameras is None else cameras
    for name, given in (("boxes_xyxy", boxes_xyxy), ("cameras", cameras)):
        if given is not None and len(given) != len(images):
            raise UserError(f"{name} has {len(given)} entries for {len(images)} photos: give one for each")
    for camera in cameras:
        _check_camera(camera)
    cut = []
    for index, image in enumerate(images):
        box = None if boxes_xyxy is None else boxes_xyxy[index]
        # As in a job: a photo without a box may be decoded at a lower resolution.
        photo = _photo(image, min_side_px=math.ceil(crop_px / margin) if box is None else None)
        camera_of_photo = _camera(cameras[index], photo)
        cut.append(
            crop_photo(
                photo.pixels, photo.width, photo.height, crop_px, box, margin=margin, camera=camera_of_photo
            )
        )
    return cut


def _check_camera(camera: Camera | None) -> None:
    try:
        if camera is not None:
            camera.check()
    except (ValueError, TypeError) as error:
        raise UserError(f"invalid camera: {error}") from None


def _camera(camera: Camera | None, photo: Photo) -> PhotoCamera:
    return exif_camera(photo) if camera is None else given_camera(camera, photo, photo.stretch_xy)


def _photo(image: np.ndarray | str | Path, min_side_px: int | None) -> Photo:
    if isinstance(image, (str, Path)):
        return decode_photo(read_photo(str(image)), min_side_px)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(
            f"a photo must be an array (height, width, 3) of uint8 RGB, got {image.dtype} {image.shape}"
        )
    return Photo(image, width=image.shape[1], height=image.shape[0])
