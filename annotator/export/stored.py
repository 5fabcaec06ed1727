"""Photos as others may read them: their own bytes where pixels mean there what they mean in labels."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotator.photos.decode import Photo, as_shown, decode_photo
from annotator.photos.exif import Shown

#: For what was lossy before.
_QUALITY = 95


@dataclass(frozen=True, eq=False)
class Stored:
    """A photo's file."""

    data: bytes
    suffix: str  # jpg or png
    width: int  # upright
    height: int


def as_others_read(found: bytes | NDArray[np.uint8]) -> Stored:
    """The file of what `photos.stored_at` found, for readers that know neither EXIF nor other formats.

    A JPEG or PNG stays as it is, if it is upright, of square pixels, and 8-bit grey or RGB. Anything else is decoded as
    it was for labelling and written anew, as JPEG where it was lossy, else as PNG.

    Raises:
        PhotoError: it can't be read.
    """
    if not isinstance(found, bytes):
        return _as_jpeg(found)
    kept = _as_it_is(found)
    if kept is not None:
        return kept
    photo: Photo = decode_photo(found)
    # A JPEG of more pixels than are decoded comes smaller, and labels count those of the whole.
    pixels = photo.pixels
    if pixels.shape[:2] != (photo.height, photo.width):
        pixels = np.asarray(Image.fromarray(pixels).resize((photo.width, photo.height)))
    is_lossy = found[:2] == b"\xff\xd8" or found[8:12] == b"WEBP" or found[4:8] == b"ftyp"
    return _as_jpeg(pixels) if is_lossy else _as_png(pixels)


def _as_it_is(data: bytes) -> Stored | None:
    try:
        # The header alone; pixels were decoded when they were labelled.
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
            plain = image.mode in ("RGB", "L") and "transparency" not in image.info
            if not plain or as_shown(image) != Shown():
                return None
            return Stored(data, "png" if image.format == "PNG" else "jpg", *image.size)
    except Exception:  # whatever Pillow makes of a broken header: decoding says what it is
        return None


def _as_jpeg(pixels: NDArray[np.uint8]) -> Stored:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return Stored(file.getvalue(), "jpg", pixels.shape[1], pixels.shape[0])


def _as_png(pixels: NDArray[np.uint8]) -> Stored:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return Stored(file.getvalue(), "png", pixels.shape[1], pixels.shape[0])
