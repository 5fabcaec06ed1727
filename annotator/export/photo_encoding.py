"""Photos for other tools: the original bytes if other readers see the same pixels as the labels, else re-encoded."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotator.photos.decode import Photo, as_shown, decode_photo
from annotator.photos.exif import Display

#: JPEG quality of photos that were lossy before.
_QUALITY = 95


@dataclass(frozen=True, eq=False)
class StoredPhoto:
    """A photo's file; `suffix` is jpg or png, the size is that of the upright photo."""

    data: bytes
    suffix: str
    width: int
    height: int


def as_others_read(stored: bytes | NDArray[np.uint8]) -> StoredPhoto:
    """Return the result of `sources.read.stored_at` as a file for readers without EXIF and other formats.

    An upright JPEG or PNG with square pixels and 8-bit grey or RGB stays as it is. Any other photo is decoded as for
    labelling and encoded again: as JPEG if it was lossy, otherwise as PNG.

    Raises:
        PhotoError: the photo can't be decoded.
    """
    if not isinstance(stored, bytes):
        return _as_jpeg(stored)
    kept = _as_it_is(stored)
    if kept is not None:
        return kept
    photo: Photo = decode_photo(stored)
    # Very large JPEGs are decoded at a reduced size; labels count the pixels of the full size.
    pixels = photo.pixels
    if pixels.shape[:2] != (photo.height, photo.width):
        pixels = np.asarray(Image.fromarray(pixels).resize((photo.width, photo.height)))
    is_lossy = stored[:2] == b"\xff\xd8" or stored[8:12] == b"WEBP" or stored[4:8] == b"ftyp"
    return _as_jpeg(pixels) if is_lossy else _as_png(pixels)


def _as_it_is(data: bytes) -> StoredPhoto | None:
    try:
        # Reads the header alone: labelling decoded the pixels.
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
            plain = image.mode in ("RGB", "L") and "transparency" not in image.info
            if not plain or as_shown(image) != Display():
                return None
            return StoredPhoto(data, "png" if image.format == "PNG" else "jpg", *image.size)
    except Exception:  # Pillow raises many types for a broken header; decoding gives the reason
        return None


def _as_jpeg(pixels: NDArray[np.uint8]) -> StoredPhoto:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return StoredPhoto(file.getvalue(), "jpg", pixels.shape[1], pixels.shape[0])


def _as_png(pixels: NDArray[np.uint8]) -> StoredPhoto:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return StoredPhoto(file.getvalue(), "png", pixels.shape[1], pixels.shape[0])
