"""Recognise the format of a photo from its first bytes, and check files for damage that Pillow overlooks.

Each format has its own Pillow class as reader. `Image.open` is not used: it prints warnings, tries forty formats (one
of them starts Ghostscript), and its size limit applies to the whole process.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from annotator.photos import heif, plain_jpeg, tiff
from annotator.photos.errors import PhotoError

#: Pillow keeps 4 bytes per pixel and the array 3: 0.7 GB for the largest photo. A JPEG may have twice as many pixels
#: (phones with 200 megapixels) and is then decoded at half size. WebP, HEIC and AVIF decoders keep more copies.
MAX_PIXELS = 100_000_000

#: The largest photo, stored raw with 16 bits per channel, plus metadata.
MAX_BYTES = 8 * MAX_PIXELS

_BMP_HEADER_BYTES = 26  # the oldest kind of header


def check_png(data: bytes) -> None:
    """Check a PNG's checksums and its end mark; Pillow checks neither.

    Raises:
        PhotoError: `corrupt` or `truncated`.
    """
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        kind = data[position + 4 : position + 8]
        if kind[:1].isupper():  # a critical chunk: pixels depend on it
            checksum = zlib.crc32(memoryview(data)[position + 4 : end - 4])
            if checksum != int.from_bytes(data[end - 4 : end], "big"):
                raise PhotoError("corrupt", "the PNG data is damaged: a checksum is wrong")
        if kind == b"IEND":
            return
        position = end
    raise PhotoError("truncated", "the PNG file is cut short")


def webp_size(data: bytes) -> tuple[int, int]:
    """Return the width and height in a WebP's header."""
    form, body = data[12:16], data[20:30]
    if form == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if form == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _uint32_le(data: bytes, start: int) -> int:
    return int.from_bytes(data[start : start + 4], "little")


def _bmp_is_cut(data: bytes) -> bool:
    return len(data) < _BMP_HEADER_BYTES or _uint32_le(data, 2) > len(data)


@dataclass(frozen=True)
class Format:
    """A supported format: its reader, damage check and size limit."""

    name: str
    reader: Callable[[io.BytesIO], ImageFile.ImageFile]
    is_cut_short: Callable[[bytes], bool]  # valid only for a file that failed to decode
    max_pixels: int = MAX_PIXELS

    def check_size(self, width: int, height: int) -> None:
        """Raise PhotoError `too_large` for a photo with more than `max_pixels`."""
        if width * height > self.max_pixels:
            raise PhotoError(
                "too_large",
                f"the photo has {width} x {height} pixels; the limit for {self.name} is {self.max_pixels:,}",
            )


BMP = Format("BMP", BmpImageFile, _bmp_is_cut)
GIF = Format("GIF", GifImageFile, lambda data: not data.endswith(b";"))
JPEG = Format("JPEG", JpegImageFile, lambda data: not data.endswith(b"\xff\xd9"), 2 * MAX_PIXELS)
PNG = Format("PNG", PngImageFile, lambda data: b"IEND" not in data[-12:])
TIFF = Format("TIFF", tiff.open_tiff, tiff.is_cut_short)
# The decoders of these three keep more copies of the pixels.
HEIC = Format("HEIC", heif.open_heic, heif.is_cut_short, MAX_PIXELS // 2)
AVIF = Format("AVIF", heif.open_avif, heif.is_cut_short, MAX_PIXELS // 2)
WEBP = Format("WebP", WebPImageFile, lambda data: _uint32_le(data, 4) + 8 > len(data), MAX_PIXELS // 2)

_FORMATS = {
    b"\xff\xd8\xff": JPEG,
    b"\x89PNG\r\n\x1a\n": PNG,
    b"GIF87a": GIF,
    b"GIF89a": GIF,
    b"BM": BMP,
    **dict.fromkeys([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"], TIFF),  # the latter are BigTIFF
}

# Offset, bytes there, and the name of the format for the error message.
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


#: The length of the usual header of a BMP, which follows the file header if there is one.
_START_OF_DIB = b"(\0\0\0"

#: TGA has no mark at its start; since version 2 files end with this one.
_END_OF_TGA = b"TRUEVISION-XFILE.\0"

_NO_PICTURES = ("a video", "PostScript", "PDF")

#: Number of first bytes that `starts_like_a_photo` needs.
START_BYTES = 32


def decoding_error(photo_format: Format, data: bytes, error: Exception) -> PhotoError:
    """Return the reason why a file could not be decoded, from its bytes and Pillow's error."""
    name = photo_format.name
    if isinstance(error, heif.NoReaderError):
        return PhotoError("unsupported", str(error))
    if isinstance(error, Image.DecompressionBombError):  # a GIF's frame may be larger than the GIF
        limit = f"the limit for {name} is {photo_format.max_pixels:,}"
        return PhotoError("too_large", f"the photo has more pixels than its header states; {limit}")
    if photo_format is JPEG and (other := plain_jpeg.unusual_kind(data)):
        return PhotoError("unsupported", f"{other} is not supported; convert it to plain JPEG")
    if photo_format.is_cut_short(data):
        return PhotoError("truncated", f"the {name} file is cut short")
    # Pillow has no error class for unsupported files, only these messages.
    if any(words in str(error) for words in ("cannot handle", "unknown pixel mode", "unsupported")):
        return PhotoError("unsupported", f"this kind of {name} is not supported")
    if "truncated" in str(error):
        return PhotoError("truncated", f"the {name} file is cut short")
    return PhotoError("corrupt", f"the {name} data is damaged")


def starts_like_a_photo(start: bytes) -> bool:
    """Return whether the first `START_BYTES` of a file are those of a picture, in a supported format or not."""
    try:
        format_of(start)
    except PhotoError:
        return any(
            name not in _NO_PICTURES and start.startswith(mark, offset) for offset, mark, name in _UNSUPPORTED
        )
    return True


def format_of(data: bytes) -> Format:
    """Return the format of a photo.

    Args:
        data: the whole file, or its first `START_BYTES`.

    Raises:
        PhotoError: `unsupported`, with the format's name, or `not_a_photo`.
    """
    for start, photo_format in _FORMATS.items():
        if data.startswith(start):
            return photo_format
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WEBP
    if name := heif.heif_kind(data):
        return HEIC if name == "HEIC" else AVIF
    for offset, start, other in _UNSUPPORTED:
        if data.startswith(start, offset):
            raise PhotoError("unsupported", f"{other} is not supported; convert it to JPEG")
    if data.startswith(_START_OF_DIB) and data[12:14] == b"\1\0":  # one plane
        raise PhotoError(
            "unsupported", "a BMP without its file header (DIB) is not supported; convert it to JPEG"
        )
    if data.endswith(_END_OF_TGA):
        raise PhotoError("unsupported", "TGA is not supported; convert it to JPEG")
    raise PhotoError("not_a_photo", "not a photo: the first bytes match no supported image format")
