"""The camera of a photo: given, from EXIF, or assumed."""

from __future__ import annotations

from typing import NamedTuple

from annotator.lens import Lens
from annotator.photos.decode import Photo


class PhotoCamera(NamedTuple):
    """The known facts of a photo's camera, photo pixels."""

    focal_px: float | None = None  # None: assumed
    principal_px: tuple[float, float] | None = None  # None: the photo's centre
    focal_source: str = "assumed"  # or given, exif
    lens: Lens | None = None  # None: a pinhole camera with one focal length


#: An unknown camera.
UNKNOWN = PhotoCamera()


def exif_camera(photo: Photo) -> PhotoCamera:
    """Return the camera of a photo without a list."""
    if photo.exif_focal_px is None:
        return UNKNOWN
    return PhotoCamera(photo.exif_focal_px, None, "exif")
