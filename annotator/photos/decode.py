"""Decode the bytes of a photo to upright sRGB pixels, or raise a `PhotoError` with a reason from a closed list.

`plain_jpeg` decodes plain JPEGs, which most photos are. Pillow decodes everything else, by the format's own class.
"""

from __future__ import annotations

import io
import stat
import warnings
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from annotator.errors import UserError
from annotator.photos import formats, plain_jpeg, tiff
from annotator.photos.errors import PhotoError, reading_error
from annotator.photos.exif import Display, shown_as
from annotator.photos.focal import exif_focal_px
from annotator.photos.formats import MAX_BYTES, MAX_PIXELS, Format
from annotator.photos.jpeg_end import ends_early
from annotator.photos.pixels import STORED_VIEW, square_pixels, square_size, upright_rgb
from annotator.storage.files import is_local, local_path
from annotator.storage.remote import read_part

#: A photo with a shorter side below this is too small to show a hand.
MIN_SIDE_PX = 8

_ORIENTATION = 274  # TIFF tag

# libjpeg fills missing blocks with middle grey, 128, or 64 in CMYK. Ordinary photos have fewer pixels of exactly these
# values than this fraction.
_FILL_GREYS, _MAX_GREY_FRACTION = (128, 64), 0.01

# Pillow warns about damaged EXIF, which this package reads itself. The filter is set once, here, because
# `warnings.catch_warnings` is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded photo."""

    # (H, W, 3) sRGB, upright, square pixels; full size, or scaled down by 2, 4 or 8
    pixels: NDArray[np.uint8]
    width: int  # of the full-size photo, upright, in square pixels
    height: int
    stretch_xy: tuple[float, float] = (1.0, 1.0)  # width and height over those of the upright stored picture
    exif_focal_px: float | None = None  # focal length in pixels of the full-size photo, see `photos/focal.py`


def read_photo(path: str) -> bytes:
    """Return the bytes of a photo's file, given its path or URL.

    Raises:
        PhotoError: `missing`, `no_permission`, `not_a_photo` (a folder or a device), `too_large`, or `io_error` (a disk
            or store still fails after all retries).
    """
    try:
        if not is_local(path):
            data = read_part(path, 0, MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise PhotoError("too_large", f"the file is larger than the limit of {MAX_BYTES:,} bytes")
            return data
        file = local_path(path)
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise PhotoError("not_a_photo", f"this is {kind}")
        if status.st_size > MAX_BYTES:
            raise PhotoError(
                "too_large", f"the file has {status.st_size:,} bytes; the limit is {MAX_BYTES:,}"
            )
        return file.read_bytes()
    except PermissionError:
        raise PhotoError("no_permission", "no permission to read the file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise PhotoError("missing", "no such file") from None
    except OSError as error:
        raise reading_error(error) from None
    except (ValueError, UserError):
        raise PhotoError("missing", "no such file: the path is not a file name") from None


def decode_photo(data: bytes, min_side_px: int | None = None) -> Photo:
    """Decode a photo to upright, square sRGB pixels of 8 bits; of an animation, the first frame.

    Transparency is composited on white, as in a browser. 16-bit samples keep the upper 8 of the bits in use. Embedded
    colour profiles are not applied. Nothing is printed except libtiff's own line about a damaged TIFF.

    Args:
        data: the file's bytes.
        min_side_px: pixels that the caller needs along the shorter side. A JPEG is then decoded at the smallest of
            full, half, quarter or eighth size that has them, which is several times faster.

    Raises:
        PhotoError: any `reason` except `missing`, `no_permission` and `io_error`. The same bytes give the same message.
    """
    if not data:
        raise PhotoError("empty", "the file is empty")
    photo_format = formats.format_of(data)
    try:
        photo = _decode(photo_format, data, min_side_px)
    except (PhotoError, MemoryError):
        raise
    except Exception as error:
        raise formats.decoding_error(photo_format, data, error) from error
    if min(photo.width, photo.height) < MIN_SIDE_PX:
        message = f"the photo has {photo.width} x {photo.height} pixels: too small to show a hand"
        raise PhotoError("too_small", message)
    return photo


def _decode(photo_format: Format, data: bytes, min_side_px: int | None) -> Photo:
    if photo_format is formats.JPEG and (photo := _plain_jpeg(data, min_side_px)) is not None:
        return photo
    if photo_format is formats.WEBP:
        photo_format.check_size(*formats.webp_size(data))  # opening a WebP already allocates its pixels
    image = photo_format.reader(io.BytesIO(data))
    width, height = image.size
    photo_format.check_size(width, height)
    if photo_format is formats.PNG:
        formats.check_png(data)
    if photo_format is formats.JPEG:
        _scale_down(image, min_side_px)
    shown = _tiff_as_shown(image) if isinstance(image, TiffImageFile) else as_shown(image)
    # Other code in the process may have enabled this; a half-grey photo must fail.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    image.load()
    if isinstance(image, TiffImageFile):
        width, height = image.size
        tiff.check_depth(image)
    pixels = upright_rgb(image, shown.orientation)
    if (
        photo_format is formats.JPEG
        and _may_lack_blocks(STORED_VIEW[shown.orientation](pixels))
        and ends_early(data)
    ):
        raise PhotoError("truncated", "the JPEG's image data stops early")
    exif = data if isinstance(image, TiffImageFile) else _exif_of(image)
    return _upright_photo(pixels, width, height, shown, exif)


def _tiff_as_shown(image: TiffImageFile) -> Display:
    """Return how to display a TIFF after loading: Pillow rotates the picture but ignores the shape of its pixels."""
    x, y = image.info.get("dpi") or image.info.get("resolution") or (1, 1)
    aspect = shown_as(b"", b"", (float(x), float(y)), image.size).pixel_aspect
    is_sideways = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return Display(1, 1 / aspect if is_sideways else aspect)


def _upright_photo(pixels: NDArray[np.uint8], width: int, height: int, shown: Display, exif: bytes) -> Photo:
    """Return the photo with these upright pixels; `width` and `height` are the stored ones."""
    aspect = shown.pixel_aspect
    if shown.orientation >= 5:
        width, height, aspect = height, width, 1 / aspect
    if aspect == 1:
        return Photo(pixels, width, height, exif_focal_px=exif_focal_px(exif, (width, height)))
    square_width, square_height = square_size(width, height, aspect)
    stretch = square_width / width, square_height / height
    return Photo(square_pixels(pixels, aspect), square_width, square_height, stretch)


def _plain_jpeg(data: bytes, min_side_px: int | None) -> Photo | None:
    header = plain_jpeg.read_header(data)
    if header is None or header.width * header.height > formats.JPEG.max_pixels:
        return None
    width, height = header.width, header.height
    stored = plain_jpeg.decode(data, header, _scale(width, height, min_side_px))
    if stored is None:
        return None
    shown = shown_as(header.exif, header.xmp, header.density, (width, height))
    if shown.orientation == 1:
        return _upright_photo(stored, width, height, shown, header.exif)
    pixels = np.empty(stored.shape[1::-1] + (3,) if shown.orientation >= 5 else stored.shape, np.uint8)
    STORED_VIEW[shown.orientation](pixels)[:] = stored
    return _upright_photo(pixels, width, height, shown, header.exif)


def _may_lack_blocks(stored: NDArray[np.uint8]) -> bool:
    """Return whether libjpeg may have filled in missing blocks: the last row ends in one colour, or much is grey."""
    corner, sample = stored[-1, -4:], stored[::4, ::4]
    if (corner == corner[0]).all():
        return True
    return any((sample == grey).all(-1).mean() > _MAX_GREY_FRACTION for grey in _FILL_GREYS)


def _scale(width: int, height: int, min_side_px: int | None) -> int:
    """Return the divisor of a JPEG's size for decoding: the largest of 8, 4, 2, 1 that leaves enough pixels."""
    largest = 1 if min_side_px is None else min(width, height) // max(1, min_side_px)
    if width * height > MAX_PIXELS:
        largest = max(2, largest)
    return next(scale for scale in (8, 4, 2, 1) if scale <= max(1, largest))


def _scale_down(image: ImageFile.ImageFile, min_side_px: int | None) -> None:
    width, height = image.size
    scale = _scale(width, height, min_side_px)
    if scale > 1:
        # Pillow divides again, rounds down, and takes the largest of 8, 4, 2, 1 up to the result.
        image.draft(None, (max(1, width // scale), max(1, height // scale)))


def as_shown(image: ImageFile.ImageFile) -> Display:
    """Return how to display an opened image that is not a TIFF."""
    info = image.info
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    # For JPEG, Pillow's `dpi` is EXIF's. PNG has pixels per metre, or only their ratio.
    density = info.get("jfif_density") if image.format == "JPEG" else info.get("aspect") or info.get("dpi")
    xmp = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    return shown_as(_exif_of(image), xmp, density, image.size)


def _exif_of(image: ImageFile.ImageFile) -> bytes:
    """Return an opened image's EXIF as a TIFF structure; may be empty."""
    exif: bytes = (image.info.get("exif") or b"").removeprefix(b"Exif\0\0")
    if not exif and (raw := image.info.get("Raw profile type exif")):
        # ImageMagick writes EXIF into PNG as three lines, then hex.
        with suppress(ValueError):
            exif = bytes.fromhex("".join(raw.split("\n")[3:])).removeprefix(b"Exif\0\0")
    return exif
