"""TIFF: kinds that Pillow opens wrongly or not at all, and files that are cut short."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from functools import cache
from typing import cast

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from annotator.photos.errors import PhotoError

# Tags.
_SUBFILE_TYPE, BITS_PER_SAMPLE, _COMPRESSION = 254, 258, 259
_PARTS = (273, 279, 324, 325)  # offsets and lengths of strips, and of tiles
_TYPES = dict(zip((3, 4, 5, 8, 9, 10, 11, 12, 13, 16, 17, 18), "HIQHIQIQIQQQ", strict=True))  # else bytes
_MAX_TAGS = 1000
#: Compressions that libtiff lacks, at least in some builds.
_COMPRESSIONS = {
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


def open_tiff(stream: io.BytesIO) -> TiffImageFile:
    """Open a TIFF.

    Raises:
        PhotoError: `unsupported`: a raw file, or a compression that libtiff lacks.
    """
    _check_compression(stream)
    image = TiffImageFile(stream)
    if image.tag_v2.get(_SUBFILE_TYPE, 0) & 1:
        raise PhotoError("unsupported", "a camera's raw file is not supported; convert it to JPEG")
    return image


def _check_compression(stream: io.BytesIO) -> None:
    """Refuse a compression that libtiff lacks, before libtiff prints a warning and reports damage."""
    name = None
    with suppress(Exception):  # a damaged directory fails again when the file is opened
        start = stream.read(16)
        directory = ImageFileDirectory_v2(start if b"+" in start[2:4] else start[:8])
        stream.seek(directory.next)
        directory.load(stream)
        name = _COMPRESSIONS.get(directory.get(_COMPRESSION, 1))
    stream.seek(0)
    if name is not None and not _libtiff_reads(name):
        raise PhotoError("unsupported", f"a TIFF with {name} inside is not supported; convert it to JPEG")


@cache
def _libtiff_reads(compression: str) -> bool:
    """Return whether Pillow's libtiff supports an optional compression."""
    if compression not in ("WebP", "Zstandard", "LZMA"):
        return False
    with suppress(Exception):
        sink = io.BytesIO()
        Image.new("RGB", (8, 8)).save(sink, "TIFF", compression=_PILLOW_NAMES[compression])
        return True
    return False


def check_depth(image: TiffImageFile) -> None:
    """Refuse 16-bit colours that use 12 bits or fewer: Pillow keeps the upper 8 bits, which would be nearly black."""
    if image.mode == "RGB" and image.tag_v2.get(BITS_PER_SAMPLE, (8,))[0] == 16:
        highest = max(high for _, high in cast(tuple[tuple[int, int], ...], image.getextrema()))
        if highest < 16:
            raise PhotoError(
                "unsupported", "a TIFF whose 16-bit colours use 12 bits or fewer is not supported"
            )


def is_cut_short(data: bytes) -> bool:
    """Return whether a TIFF's first directory, or anything it points to, lies beyond the end of the file."""
    order, big = "<" if data[:1] == b"I" else ">", b"+" in data[2:4]
    count_form, entry_form, offset_form = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    inline, parts = 8 if big else 4, {}
    try:
        (directory,) = struct.unpack_from(order + offset_form, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + count_form, data, directory)
        entry = directory + struct.calcsize(order + count_form)
        for _ in range(min(count, _MAX_TAGS)):
            tag, form, length = struct.unpack_from(order + entry_form, data, entry)
            at = entry + struct.calcsize(order + entry_form)
            entry = at + inline
            values = f"{order}{length}{_TYPES.get(form, 'B')}"
            if struct.calcsize(values) > inline:
                (at,) = struct.unpack_from(order + offset_form, data, at)
            if at + struct.calcsize(values) > len(data):
                return True
            if tag in _PARTS:
                parts[tag] = struct.unpack_from(values, data, at)
    except (struct.error, OverflowError):
        return True
    return any(
        offset + length > len(data)
        for offsets, lengths in (_PARTS[:2], _PARTS[2:])
        for offset, length in zip(parts.get(offsets, ()), parts.get(lengths, ()), strict=False)
    )
