"""Bytes of a photo to sRGB pixels, or one closed reason why not.

Each format is known by its first bytes and read by its own Pillow class; plain JPEGs, which most photos are, more
quickly by `plain_jpeg`. `Image.open` is not used: it warns, it tries forty formats (one of them starts Ghostscript),
and its size limit is a setting of the whole process.
"""

from __future__ import annotations

import errno
import io
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from annotator.errors import UserError
from annotator.photos import heif, plain_jpeg
from annotator.photos.exif import Shown, shown_as
from annotator.photos.jpeg_end import ends_early
from annotator.storage.files import is_local, local_path
from annotator.storage.remote import read_part

Reason = Literal[
    "missing",
    "no_permission",
    "io_error",
    "empty",
    "not_a_photo",
    "truncated",
    "corrupt",
    "too_large",
    "too_small",
    "unsupported",
    "box_outside",
]

#: Pillow keeps 4 bytes a pixel and the array 3: 0.7 GB for the largest photo. A JPEG of up to twice as many
#: pixels is decoded at half its size, for phones with 200 megapixels; WebP's decoder keeps more copies.
MAX_PIXELS = 100_000_000

#: The largest photo, stored raw with 16 bits a channel, and something for its metadata.
MAX_BYTES = 8 * MAX_PIXELS

#: A photo whose shorter side has fewer pixels shows no hand.
MIN_SIDE_PX = 8

_BACKGROUND = 255

# The middle grey of libjpeg, and that of CMYK; no ordinary photo has so many pixels of exactly one of them.
_FILLED_IN, _MANY = (128, 64), 0.01

_PIXELS_AT_ONCE = 4_000_000

# TIFF tags.
_SUBFILE_TYPE, _BITS_PER_SAMPLE, _COMPRESSION, _ORIENTATION = 254, 258, 259, 274
_TIFF_PARTS = (273, 279, 324, 325)  # offsets and lengths of strips, and of tiles
_TIFF_TYPES = dict(
    zip((3, 4, 5, 8, 9, 10, 11, 12, 13, 16, 17, 18), "HIQHIQIQIQQQ", strict=True)
)  # else bytes
_MAX_TIFF_TAGS = 1000
#: Compressions that no libtiff has, or not every one.
_TIFF_COMPRESSIONS = {
    **{
        34712: "JPEG 2000",
        33003: "JPEG 2000",
        33005: "JPEG 2000",
        34887: "LERC",
        34933: "PNG",
        34934: "JPEG XR",
    },
    **{34925: "LZMA", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"},
}
_PILLOW_NAMES = {"WebP": "webp", "Zstandard": "zstd", "LZMA": "lzma"}

_BMP_HEADER_BYTES = 26  # of the oldest kind

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

    pixels: NDArray[np.uint8]  # (H, W, 3) sRGB, upright, square, the photo itself or scaled down by 2, 4 or 8
    width: int  # of the photo itself, upright, in square pixels
    height: int
    stretch_xy: tuple[float, float] = (1.0, 1.0)  # how much wider and higher it is than its upright file


def read_photo(path: str) -> bytes:
    """The bytes of a photo's file, a path or URL.

    Raises:
        PhotoError: `missing`, `no_permission`, `not_a_photo` (a folder or a device), `too_large`, or `io_error` where a
            disk or store did not answer as it should, for long.
    """
    try:
        if not is_local(path):
            return _checked_length(read_part(path, 0, MAX_BYTES + 1))
        file = local_path(path)
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise PhotoError("not_a_photo", f"this is {kind}")
        if status.st_size > MAX_BYTES:
            raise _too_many_bytes(f"{status.st_size:,}")
        return file.read_bytes()
    except PermissionError:
        raise PhotoError("no_permission", "no permission to read the file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise PhotoError("missing", "no such file") from None
    except OSError as error:
        raise reading_error(error) from None
    except (ValueError, UserError):
        raise PhotoError("missing", "no such file: the path is not a file name") from None


def reading_error(error: OSError) -> PhotoError:
    """Why a file that is there can't be read: its name, or its disk or store."""
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
        return PhotoError("missing", f"the file can't be read: {error.strerror}")
    return PhotoError("io_error", f"the file can't be read: {error.strerror or type(error).__name__}")


def _checked_length(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise _too_many_bytes("more")
    return data


def _too_many_bytes(there: str) -> PhotoError:
    return PhotoError("too_large", f"the file has {there} bytes; at most {MAX_BYTES:,} are read")


def decode_photo(data: bytes, min_side_px: int | None = None) -> Photo:
    """Decode a photo: upright, square pixels, sRGB, 8 bits; the first frame of an animation.

    Transparency is laid on white, as a browser shows it. 16 bits become the upper 8 of them, or of those
    that are used. An embedded colour profile is not applied. Nothing is printed, but for libtiff's own line about a
    damaged TIFF.

    Args:
        data: the file's bytes.
        min_side_px: the caller needs no more pixels along the shorter side. A JPEG is then decoded at a
            half, a quarter or an eighth of its size, as small as this allows, which is several times faster.

    Raises:
        PhotoError: any `reason` but the two of `read_photo`. The same bytes give the same message.
    """
    if not data:
        raise PhotoError("empty", "the file is empty")
    kind = _kind_of(data)
    try:
        photo = _decode(kind, data, min_side_px)
        if min(photo.width, photo.height) < MIN_SIDE_PX:
            message = f"the photo has {photo.width} x {photo.height} pixels: too small to show a hand"
            raise PhotoError("too_small", message)
        return photo
    except (PhotoError, MemoryError):
        raise
    except heif.NoReaderError as error:
        raise PhotoError("unsupported", str(error)) from None
    except Image.DecompressionBombError:  # a GIF's frame may be larger than the GIF
        message = (
            f"the photo has more pixels than it says; of a {kind.name}, at most {kind.max_pixels:,} are read"
        )
        raise PhotoError("too_large", message) from None
    except Exception as error:
        if kind.name == "JPEG" and (other := plain_jpeg.unusual_kind(data)):
            raise PhotoError("unsupported", f"{other} is not supported; convert it to plain JPEG") from error
        if kind.is_cut_short(data):
            raise PhotoError("truncated", f"the {kind.name} file is cut short") from error
        # Pillow has no error class for what it can't read; these are its words.
        if any(words in str(error) for words in ("cannot handle", "unknown pixel mode", "unsupported")):
            raise PhotoError("unsupported", f"this kind of {kind.name} is not supported") from error
        if "truncated" in str(error):
            raise PhotoError("truncated", f"the {kind.name} file is cut short") from error
        raise PhotoError("corrupt", f"the {kind.name} data is damaged") from error


def _decode(kind: _Kind, data: bytes, min_side_px: int | None) -> Photo:
    if kind.name == "JPEG" and (photo := _plain_jpeg(data, min_side_px)) is not None:
        return photo
    if kind.name == "WebP":
        _check_size(kind, *_webp_size(data))  # its decoder takes the memory as it opens
    image = kind.reader(io.BytesIO(data))
    width, height = image.size
    _check_size(kind, width, height)
    if kind.name == "PNG":
        _check_png(data)
    if kind.name == "JPEG":
        _scale_down(image, min_side_px)
    shown = _as_turned(image) if isinstance(image, TiffImageFile) else as_shown(image)
    # Elsewhere in the process this could be switched on; a photo that is half grey is not a photo.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    image.load()
    if isinstance(image, TiffImageFile):
        width, height = image.size
        _check_depth(image)
    pixels = _upright_rgb(image, shown.orientation)
    if kind.name == "JPEG" and _may_lack_blocks(_STORED_VIEW[shown.orientation](pixels)) and ends_early(data):
        raise PhotoError("truncated", "the JPEG's picture stops before its end")
    return _upright_photo(pixels, width, height, shown)


def _as_turned(image: TiffImageFile) -> Shown:
    """How a TIFF is to be shown once it is loaded: Pillow turns it, and not the shape of its pixels."""
    x, y = image.info.get("dpi") or image.info.get("resolution") or (1, 1)
    aspect = shown_as(b"", b"", (float(x), float(y)), image.size).pixel_aspect
    is_turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return Shown(1, 1 / aspect if is_turned else aspect)


def _check_depth(image: TiffImageFile) -> None:
    """Pillow keeps the upper 8 bits of 16-bit colours, and few are left where samples use 12 or fewer."""
    if image.mode == "RGB" and image.tag_v2.get(_BITS_PER_SAMPLE, (8,))[0] == 16:
        highest = max(high for _, high in cast(tuple[tuple[int, int], ...], image.getextrema()))
        if highest < 16:
            raise PhotoError(
                "unsupported", "a TIFF of 16-bit colours that use 12 bits or fewer is not supported"
            )


def _upright_photo(pixels: NDArray[np.uint8], width: int, height: int, shown: Shown) -> Photo:
    """The photo of upright pixels, of stored width and height."""
    aspect = shown.pixel_aspect
    if shown.orientation >= 5:
        width, height, aspect = height, width, 1 / aspect
    if aspect == 1:
        return Photo(pixels, width, height)
    square_width, square_height = square_size(width, height, aspect)
    stretch = square_width / width, square_height / height
    return Photo(square_pixels(pixels, aspect), square_width, square_height, stretch)


def _plain_jpeg(data: bytes, min_side_px: int | None) -> Photo | None:
    header = plain_jpeg.read_header(data)
    if header is None or header.width * header.height > _JPEG.max_pixels:
        return None
    width, height = header.width, header.height
    stored = plain_jpeg.decode(data, header, _scale(width, height, min_side_px))
    if stored is None:
        return None
    shown = shown_as(header.exif, header.xmp, header.density, (width, height))
    if shown.orientation == 1:
        return _upright_photo(stored, width, height, shown)
    pixels = np.empty(stored.shape[1::-1] + (3,) if shown.orientation >= 5 else stored.shape, np.uint8)
    _STORED_VIEW[shown.orientation](pixels)[:] = stored
    return _upright_photo(pixels, width, height, shown)


def _may_lack_blocks(stored: NDArray[np.uint8]) -> bool:
    """Whether libjpeg may have filled in for missing blocks: the last row ends in one colour, or much is grey."""
    corner, some = stored[-1, -4:], stored[::4, ::4]
    if (corner == corner[0]).all():
        return True
    return any((some == grey).all(-1).mean() > _MANY for grey in _FILLED_IN)


def _check_size(kind: _Kind, width: int, height: int) -> None:
    if width * height > kind.max_pixels:
        message = (
            f"the photo has {width} x {height} pixels; of a {kind.name}, at most {kind.max_pixels:,} are read"
        )
        raise PhotoError("too_large", message)


def _scale(width: int, height: int, min_side_px: int | None) -> int:
    """By how much a JPEG is decoded smaller: the largest of 8, 4, 2, 1 that leaves as many pixels as are needed."""
    most = 1 if min_side_px is None else min(width, height) // max(1, min_side_px)
    if width * height > MAX_PIXELS:
        most = max(2, most)
    return next(scale for scale in (8, 4, 2, 1) if scale <= max(1, most))


def _scale_down(image: ImageFile.ImageFile, min_side_px: int | None) -> None:
    width, height = image.size
    scale = _scale(width, height, min_side_px)
    if scale > 1:
        # Pillow divides again, rounding down, and takes the largest of 8, 4, 2, 1 that is no more.
        image.draft(None, (max(1, width // scale), max(1, height // scale)))


def _upright_rgb(image: ImageFile.ImageFile, orientation: int) -> NDArray[np.uint8]:
    """The loaded image as (H, W, 3), turned as EXIF says; converted a few rows at a time to save memory."""
    width, height = image.size
    pixels = np.empty((width, height, 3) if orientation >= 5 else (height, width, 3), np.uint8)
    as_stored = _STORED_VIEW[orientation](pixels)
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
    """How many bits of 16 the samples use, by some rows at a time: sensors have 10, 12 or 14, and few files say so."""
    if not image.mode.startswith("I;16"):
        return 8
    stated = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0] if isinstance(image, TiffImageFile) else 16
    width, height = image.size
    strips = (image.crop((0, top, width, min(top + step, height))) for top in range(0, height, step))
    highest = max(int(np.asarray(strip).max()) for strip in strips)
    return min(stated, next(bits for bits in (10, 12, 14, 16) if highest < 1 << bits))


def _rgb(rows: Image.Image, used_bits: int) -> NDArray[np.integer]:
    """Rows of an image in any mode as 8-bit values that fill (h, w, 3)."""
    if rows.mode == "RGB" and "transparency" not in rows.info:
        return np.asarray(rows)
    if rows.mode.startswith("I;16"):
        return (np.asarray(rows) >> (used_bits - 8))[..., None]
    if rows.mode in ("I", "F", "LAB", "HSV"):
        raise PhotoError(
            "unsupported", f"pixels of Pillow's mode {rows.mode} have no agreed range or colours"
        )
    if rows.has_transparency_data:
        rgba = np.asarray(rows.convert("RGBA")).astype(np.uint16)
        alpha = rgba[..., 3:]
        return (rgba[..., :3] * alpha + _BACKGROUND * (255 - alpha) + 127) // 255
    return np.asarray(rows.convert("RGB"))


# EXIF orientation -> a view of the upright picture (H, W, 3) in which the stored one lies as it was stored.
_STORED_VIEW: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright[::-1].swapaxes(0, 1),
}


def as_shown(image: ImageFile.ImageFile) -> Shown:
    """How an opened image, no TIFF, is to be shown."""
    info = image.info
    exif = (info.get("exif") or b"").removeprefix(b"Exif\0\0")
    if (
        not exif and "Raw profile type exif" in info
    ):  # as ImageMagick writes it into PNG: three lines, then hex
        with suppress(ValueError):
            exif = bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:])).removeprefix(
                b"Exif\0\0"
            )
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    # Of JPEG, Pillow takes EXIF's for `dpi`. PNG has pixels a metre, or only their ratio.
    density = info.get("jfif_density") if image.format == "JPEG" else info.get("aspect") or info.get("dpi")
    return shown_as(exif, xmp.encode(errors="replace") if isinstance(xmp, str) else xmp, density, image.size)


def square_pixels(pixels: NDArray[np.uint8], pixel_aspect: float) -> NDArray[np.uint8]:
    """A picture (H, W, 3), stretched until its pixels are squares; `pixel_aspect` is their width over their height.

    It is enlarged along one axis, or where it would then have too many pixels made smaller along the other.
    """
    height, width = pixels.shape[:2]
    size = square_size(width, height, pixel_aspect)
    return pixels if size == (width, height) else np.asarray(Image.fromarray(pixels).resize(size))


def square_size(width: int, height: int, pixel_aspect: float) -> tuple[int, int]:
    """The width and height of a picture once its pixels are squares."""
    if pixel_aspect == 1:
        return width, height
    fits = width * height * max(pixel_aspect, 1 / pixel_aspect) <= MAX_PIXELS
    if (pixel_aspect > 1) == fits:
        return max(1, round(width * pixel_aspect)), height
    return width, max(1, round(height / pixel_aspect))


def _check_png(data: bytes) -> None:
    """Pillow checks neither the pixels' checksums nor that the file has an end."""
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        kind = data[position + 4 : position + 8]
        if kind[:1].isupper():  # pixels depend on it
            checksum = zlib.crc32(memoryview(data)[position + 4 : end - 4])
            if checksum != int.from_bytes(data[end - 4 : end], "big"):
                raise PhotoError("corrupt", "the PNG data is damaged: a checksum is wrong")
        if kind == b"IEND":
            return
        position = end
    raise PhotoError("truncated", "the PNG file is cut short")


def _webp_size(data: bytes) -> tuple[int, int]:
    form, body = data[12:16], data[20:30]
    if form == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if form == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _open_tiff(stream: io.BytesIO) -> TiffImageFile:
    _check_compression(stream)
    image = TiffImageFile(stream)
    if image.tag_v2.get(_SUBFILE_TYPE, 0) & 1:
        raise PhotoError("unsupported", "a camera's raw file is not supported; convert it to JPEG")
    return image


def _check_compression(stream: io.BytesIO) -> None:
    """Refuse a compression that libtiff lacks, before it prints so and fails as at damage."""
    name = None
    with suppress(Exception):  # a damaged directory fails again when the file is opened
        start = stream.read(16)
        directory = ImageFileDirectory_v2(start if b"+" in start[2:4] else start[:8])
        stream.seek(directory.next)
        directory.load(stream)
        name = _TIFF_COMPRESSIONS.get(directory.get(_COMPRESSION, 1))
    stream.seek(0)
    if name is not None and not _libtiff_reads(name):
        raise PhotoError("unsupported", f"a TIFF with {name} inside is not supported; convert it to JPEG")


@cache
def _libtiff_reads(compression: str) -> bool:
    """Whether the libtiff that comes with Pillow has a compression that is optional in it."""
    if compression not in ("WebP", "Zstandard", "LZMA"):
        return False
    with suppress(Exception):
        sink = io.BytesIO()
        Image.new("RGB", (8, 8)).save(sink, "TIFF", compression=_PILLOW_NAMES[compression])
        return True
    return False


def _field(order: Literal["little", "big"], start: int, data: bytes) -> int:
    return int.from_bytes(data[start : start + 4], order)


def _bmp_is_cut(data: bytes) -> bool:
    return len(data) < _BMP_HEADER_BYTES or _field("little", 2, data) > len(data)


def _tiff_is_cut(data: bytes) -> bool:
    """Whether a TIFF's first directory, or anything it points to, lies beyond the end."""
    order, big = "<" if data[:1] == b"I" else ">", b"+" in data[2:4]
    count_form, entry_form, offset_form = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    inline, parts = 8 if big else 4, {}
    try:
        (directory,) = struct.unpack_from(order + offset_form, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + count_form, data, directory)
        entry = directory + struct.calcsize(order + count_form)
        for _ in range(min(count, _MAX_TIFF_TAGS)):
            tag, form, length = struct.unpack_from(order + entry_form, data, entry)
            at = entry + struct.calcsize(order + entry_form)
            entry = at + inline
            values = f"{order}{length}{_TIFF_TYPES.get(form, 'B')}"
            if struct.calcsize(values) > inline:
                (at,) = struct.unpack_from(order + offset_form, data, at)
            if at + struct.calcsize(values) > len(data):
                return True
            if tag in _TIFF_PARTS:
                parts[tag] = struct.unpack_from(values, data, at)
    except (struct.error, OverflowError):
        return True
    return any(
        offset + length > len(data)
        for offsets, lengths in (_TIFF_PARTS[:2], _TIFF_PARTS[2:])
        for offset, length in zip(parts.get(offsets, ()), parts.get(lengths, ()), strict=False)
    )


@dataclass(frozen=True)
class _Kind:
    name: str
    reader: Callable[[io.BytesIO], ImageFile.ImageFile]
    is_cut_short: Callable[[bytes], bool]  # asked only of a file that can't be read
    max_pixels: int = MAX_PIXELS


_BMP = _Kind("BMP", BmpImageFile, _bmp_is_cut)
_GIF = _Kind("GIF", GifImageFile, lambda data: not data.endswith(b";"))
_JPEG = _Kind("JPEG", JpegImageFile, lambda data: not data.endswith(b"\xff\xd9"), 2 * MAX_PIXELS)
_PNG = _Kind("PNG", PngImageFile, lambda data: b"IEND" not in data[-12:])
_TIFF = _Kind("TIFF", _open_tiff, _tiff_is_cut)
# Their decoders keep more copies, too.
_HEIC = _Kind("HEIC", heif.open_heic, heif.is_cut_short, MAX_PIXELS // 2)
_AVIF = _Kind("AVIF", heif.open_avif, heif.is_cut_short, MAX_PIXELS // 2)
_WEBP = _Kind("WebP", WebPImageFile, lambda data: _field("little", 4, data) + 8 > len(data), MAX_PIXELS // 2)

_KINDS = {
    b"\xff\xd8\xff": _JPEG,
    b"\x89PNG\r\n\x1a\n": _PNG,
    b"GIF87a": _GIF,
    b"GIF89a": _GIF,
    b"BM": _BMP,
    **dict.fromkeys([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"], _TIFF),  # the latter are BigTIFF
}

# First bytes, from where on, and what they are: named, so that the user knows what to convert.
_UNSUPPORTED = (
    (4, b"ftypcrx", "a camera's raw file"),
    (4, b"ftyp", "a video"),
    (8, b"AVI ", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    *((0, b"P%d%c" % (number, space), "PPM") for number in range(1, 8) for space in b"\n\r\t "),
    (0, b"qoif", "QOI"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"v/1\x01", "OpenEXR"),
    *(
        (0, start, "a camera's raw file")
        for start in (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")
    ),
    (0, b"8BPS", "Photoshop"),
    (0, b"%!PS", "PostScript"),
    (0, b"%PDF", "PDF"),
)


#: TGA has no mark at its start, and this one since its second version.
_END_OF_TGA = b"TRUEVISION-XFILE.\0"

_NO_PICTURES = ("a video", "PostScript", "PDF")

#: So many bytes of a file tell whether it may be a photo.
START_BYTES = 32


def starts_like_a_photo(start: bytes) -> bool:
    """Whether a file with these first `START_BYTES` is a picture, of a format that is read or not."""
    try:
        _kind_of(start)
    except PhotoError:
        return any(
            name not in _NO_PICTURES and start.startswith(mark, offset) for offset, mark, name in _UNSUPPORTED
        )
    return True


def _kind_of(data: bytes) -> _Kind:
    for start, kind in _KINDS.items():
        if data.startswith(start):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _WEBP
    if of_container := heif.heif_kind(data):
        return _HEIC if of_container == "HEIC" else _AVIF
    for offset, start, name in _UNSUPPORTED:
        if data.startswith(start, offset):
            raise PhotoError("unsupported", f"{name} is not supported; convert it to JPEG")
    if data.endswith(_END_OF_TGA):
        raise PhotoError("unsupported", "TGA is not supported; convert it to JPEG")
    raise PhotoError("not_a_photo", "not a photo: the file starts like no image format that is read")
