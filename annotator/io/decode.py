"""Bytes of a photo to sRGB pixels, or one closed reason why not.

Each format is known by its first bytes and read by its own Pillow class. `Image.open` is not used: it warns,
it tries forty formats (one of them starts Ghostscript), and its size limit is a setting of the whole process.
"""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

Reason = Literal[
    "missing", "no_permission", "empty", "not_a_photo", "truncated", "corrupt", "too_large", "unsupported"
]

#: Pillow keeps 4 bytes a pixel and the array 3: 7 bytes, 0.7 GB for the largest photo.
MAX_PIXELS = 100_000_000

#: A JPEG up to this is decoded at half its size or less, so that a phone's 200 megapixels can be labelled.
MAX_JPEG_PIXELS = 2 * MAX_PIXELS

#: The largest photo, stored raw with 16 bits a channel, and something for its metadata.
MAX_BYTES = 8 * MAX_PIXELS

_BACKGROUND = 255
_ROWS_AT_ONCE_PX = 4_000_000

# Pillow comments on damaged EXIF, of which only the orientation is read, by us. A filter set once, here:
# `warnings.catch_warnings` is not safe among threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PhotoError(Exception):
    """A photo that can't be read: a `reason` from the closed list, and one plain line."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason

    def __reduce__(self) -> tuple[type[PhotoError], tuple[Reason, str]]:
        return PhotoError, (self.reason, str(self))


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded photo."""

    pixels: NDArray[np.uint8]  # (H, W, 3) sRGB, upright, the photo itself or scaled down by 2, 4 or 8
    width: int  # of the photo itself, upright
    height: int


def read_photo(path: str) -> bytes:
    """The bytes of a photo's file.

    Raises:
        PhotoError: `missing`, `no_permission`, `not_a_photo` (a folder or a device) or `too_large`.
    """
    try:
        file = Path(path)
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise PhotoError("not_a_photo", f"this is {kind}")
        if status.st_size > MAX_BYTES:
            raise PhotoError("too_large", f"the file has {status.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        return file.read_bytes()
    except PermissionError:
        raise PhotoError("no_permission", "no permission to read the file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise PhotoError("missing", "no such file") from None
    except OSError as error:
        raise PhotoError("missing", f"the file can't be read: {error.strerror}") from None
    except ValueError:
        raise PhotoError("missing", "no such file: the path is not a file name") from None


def decode_photo(data: bytes, min_side_px: int | None = None) -> Photo:
    """Decode a photo: upright, sRGB, 8 bits; the first frame of an animation.

    Transparency is laid on white, as a browser shows it. 16 bits become the upper 8 of them. An embedded
    colour profile is not applied.

    Args:
        data: the file's bytes.
        min_side_px: the caller needs no more pixels along the shorter side. A JPEG is then decoded at a
            half, a quarter or an eighth of its size, as small as this allows, which is several times faster.

    Raises:
        PhotoError: any `reason` but the two of `read_photo`. The same bytes give the same message.
    """
    if not data:
        raise PhotoError("empty", "the file is empty")
    kind = _format_of(data)
    try:
        return _decode(kind, data, min_side_px)
    except (PhotoError, MemoryError):
        raise
    except Exception as error:
        if kind.is_cut_short(data):
            raise PhotoError("truncated", f"the {kind.name} file is cut short") from error
        # Pillow has no error class for what it can't read; these are its words.
        if any(words in str(error) for words in ("cannot handle", "unknown pixel mode", "unsupported")):
            raise PhotoError("unsupported", f"this kind of {kind.name} is not supported") from error
        if "truncated" in str(error):
            raise PhotoError("truncated", f"the {kind.name} file is cut short") from error
        raise PhotoError("corrupt", f"the {kind.name} data is damaged") from error


def _decode(kind: _Format, data: bytes, min_side_px: int | None) -> Photo:
    kind.check(data)
    image = kind.reader(io.BytesIO(data))
    width, height = image.size
    limit = MAX_JPEG_PIXELS if kind.name == "JPEG" else MAX_PIXELS
    if width * height > limit:
        raise PhotoError("too_large", f"{width} x {height} pixels; at most {limit:,} pixels are decoded")
    if kind.name == "JPEG":
        _scale_down(image, min_side_px)
    orientation = _orientation(image)
    # Elsewhere in the process this could be switched on; a photo half grey is not a photo.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    image.load()
    pixels = _upright(_rgb(image, kind.name), orientation)
    if orientation >= 5:
        width, height = height, width
    return Photo(pixels, width, height)


def _scale_down(image: ImageFile.ImageFile, min_side_px: int | None) -> None:
    width, height = image.size
    scale = 1 if min_side_px is None else max(1, min(width, height) // max(1, min_side_px))
    if width * height > MAX_PIXELS:
        scale = max(2, scale)
    if scale > 1:
        scale = min(scale, 8)
        image.draft(None, (max(1, width // scale), max(1, height // scale)))
