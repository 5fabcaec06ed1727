"""The pixels of an opened image: 8-bit RGB, upright, square."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from annotator.photos.errors import PhotoError
from annotator.photos.formats import MAX_PIXELS
from annotator.photos.tiff import BITS_PER_SAMPLE

_BACKGROUND = 255
_PIXELS_AT_ONCE = 4_000_000

# EXIF orientation -> a view of the upright picture (H, W, 3) that has the stored picture's layout.
STORED_VIEW: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright[::-1].swapaxes(0, 1),
}


def upright_rgb(image: ImageFile.ImageFile, orientation: int) -> NDArray[np.uint8]:
    """Return a loaded image as (H, W, 3), rotated by its EXIF orientation; converts strips of rows to save memory."""
    width, height = image.size
    pixels = np.empty((width, height, 3) if orientation >= 5 else (height, width, 3), np.uint8)
    as_stored = STORED_VIEW[orientation](pixels)
    step = max(1, _PIXELS_AT_ONCE // width)
    used_bits = _used_bits(image, step)
    if step >= height:
        as_stored[:] = _rgb(image, used_bits)
    else:
        for top in range(0, height, step):
            bottom = min(top + step, height)
            as_stored[top:bottom] = _rgb(image.crop((0, top, width, bottom)), used_bits)
    return pixels


def _used_bits(image: ImageFile.ImageFile, step: int) -> int:
    """Return how many of 16 bits the samples use. Sensors have 10, 12 or 14, and few files state it.

    `step` is the number of rows read at once.
    """
    if not image.mode.startswith("I;16"):
        return 8
    stated = image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0] if isinstance(image, TiffImageFile) else 16
    width, height = image.size
    strips = (image.crop((0, top, width, min(top + step, height))) for top in range(0, height, step))
    highest = max(int(np.asarray(strip).max()) for strip in strips)
    return min(stated, next(bits for bits in (10, 12, 14, 16) if highest < 1 << bits))


def _rgb(rows: Image.Image, used_bits: int) -> NDArray[np.integer]:
    """Convert rows of an image in any mode to 8-bit values that broadcast to (h, w, 3)."""
    if rows.mode == "RGB" and "transparency" not in rows.info:
        return np.asarray(rows)
    if rows.mode.startswith("I;16"):
        return (np.asarray(rows) >> (used_bits - 8))[..., None]
    if rows.mode in ("I", "F", "LAB", "HSV"):
        raise PhotoError("unsupported", f"Pillow's pixel mode {rows.mode} has no standard range or colours")
    if rows.has_transparency_data:
        rgba = np.asarray(rows.convert("RGBA")).astype(np.uint16)
        alpha = rgba[..., 3:]
        return (rgba[..., :3] * alpha + _BACKGROUND * (255 - alpha) + 127) // 255
    return np.asarray(rows.convert("RGB"))


def square_pixels(pixels: NDArray[np.uint8], pixel_aspect: float) -> NDArray[np.uint8]:
    """Stretch a picture (H, W, 3) until its pixels are square; `pixel_aspect` is their width over their height.

    Enlarges one axis, or shrinks the other where enlarging would exceed `MAX_PIXELS`.
    """
    height, width = pixels.shape[:2]
    size = square_size(width, height, pixel_aspect)
    return pixels if size == (width, height) else np.asarray(Image.fromarray(pixels).resize(size))


def square_size(width: int, height: int, pixel_aspect: float) -> tuple[int, int]:
    """Return the width and height of a picture after stretching its pixels to squares."""
    if pixel_aspect == 1:
        return width, height
    fits = width * height * max(pixel_aspect, 1 / pixel_aspect) <= MAX_PIXELS
    if (pixel_aspect > 1) == fits:
        return max(1, round(width * pixel_aspect)), height
    return width, max(1, round(height / pixel_aspect))
