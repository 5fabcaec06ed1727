"""Read and check the photo of an example."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotator.errors import UserError
from annotator.photos.decode import decode_photo
from annotator.photos.errors import PhotoError
from annotator.sources.read import stored_at

_KEPT = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def photo_columns(url: str, frame_index: int | None = None) -> dict[str, Any]:
    """Return `image`, `width` and `height` of a photo. JPEG and PNG keep their bytes, other formats become PNG.

    Args:
        url: of a file, or the label's name of a member of a tar, a Parquet row or a video.
        frame_index: of a video.

    Raises:
        PhotoError: the photo can't be read; checked here, so that training only gets readable photos.
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
    """Return `photo_columns` of a photo that must exist.

    Raises:
        UserError: the photo is missing or can't be read.
    """
    try:
        return photo_columns(url)
    except PhotoError as error:
        raise UserError(f"{url}: {error}") from None


def required_mask(url: str, width: int, height: int) -> bytes:
    """Return the `hand_mask` of an example: a picture of the photo's size, thresholded to black and white.

    Raises:
        UserError: the mask can't be read, or differs in size from the photo.
    """
    data = required_photo(url)["image"]
    pixels = decode_photo(data).pixels
    if pixels.shape[:2] != (height, width):
        raise UserError(
            f"{url}: the mask has {pixels.shape[1]} x {pixels.shape[0]} pixels, "
            f"expected {width} x {height} as its photo"
        )
    # JPEG blurs edges to grey.
    return png(np.where(pixels[..., 0] > 127, np.uint8(255), np.uint8(0)))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode pixels (H, W) or (H, W, 3) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
