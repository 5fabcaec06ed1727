"""The photo of an example: its bytes, its size, and whether it can be read at all."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotator.errors import UserError
from annotator.photos.decode import PhotoError, decode_photo
from annotator.photos.read import stored_at

_KEPT = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def photo_columns(url: str, frame_index: int | None = None) -> dict[str, Any]:
    """`image`, `width` and `height` of a photo. JPEG and PNG keep their bytes, other formats become PNG.

    Args:
        url: of a file, or as labels name what lies in a tar, a Parquet file or a video. frame_index: of a video.

    Raises:
        PhotoError: it can't be read; found out here, so that training never meets it.
    """
    stored = stored_at(url, frame_index)
    if not isinstance(stored, bytes):
        return {"image": png(stored), "width": stored.shape[1], "height": stored.shape[0]}
    kept = stored.startswith(_KEPT)
    photo = decode_photo(stored, min_side_px=1 if kept else None)
    return {
        "image": stored if kept else png(photo.pixels),
        "width": photo.width,
        "height": photo.height,
    }


def required_photo(url: str) -> dict[str, Any]:
    """`photo_columns` of a photo that its data set says is there.

    Raises:
        UserError: it is not, or can't be read.
    """
    try:
        return photo_columns(url)
    except PhotoError as error:
        raise UserError(f"{url}: {error}") from None


def required_mask(url: str, width: int, height: int) -> bytes:
    """`hand_mask` of an example: a black and white picture of the photo's size, made sharp.

    Raises:
        UserError: it can't be read, or has another size.
    """
    data = required_photo(url)["image"]
    pixels = decode_photo(data).pixels
    if pixels.shape[:2] != (height, width):
        raise UserError(
            f"{url}: the mask has {pixels.shape[1]} x {pixels.shape[0]} pixels, its photo {width} x {height}"
        )
    # JPEG leaves greys along the edges.
    return png(np.where(pixels[..., 0] > 127, np.uint8(255), np.uint8(0)))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (H, W) or (H, W, 3) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
