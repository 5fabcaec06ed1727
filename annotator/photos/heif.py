"""HEIC and AVIF, which phones write: by pi-heif (an extra: libheif and libde265, LGPL), and by Pillow's own libavif."""

from __future__ import annotations

import io

from PIL import ImageFile

_BRANDS = {
    **dict.fromkeys([b"avif", b"avis"], "AVIF"),
    **dict.fromkeys([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"], "HEIC"),
}
#: Brands of containers that may hold either; what they are compatible with says which.
_CONTAINERS = (b"mif1", b"msf1", b"mif2")


class NoReaderError(Exception):
    """What reads the format is not installed; says what to install."""


def heif_kind(data: bytes) -> str:
    """`HEIC` or `AVIF`, by a file's first bytes; empty where it is neither."""
    if data[4:8] != b"ftyp":
        return ""
    major = data[8:12]
    if major not in _CONTAINERS:
        return _BRANDS.get(major, "")
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    compatible = {data[at : at + 4] for at in range(16, end, 4)}
    return next((name for brand, name in _BRANDS.items() if brand in compatible), "HEIC")


def open_heic(stream: io.BytesIO) -> ImageFile.ImageFile:
    """A HEIC's main image, turned by libheif when it is loaded; one thread, and nothing but that image.

    Raises:
        NoReaderError: pi-heif is missing.
    """
    try:
        import pi_heif
    except ImportError:
        raise NoReaderError("HEIC is read by pi-heif: pip install 'amvur-annotator[heic]'") from None
    pi_heif.options.DECODE_THREADS = 1
    pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
    image: ImageFile.ImageFile = pi_heif.HeifImageFile(stream)
    return image


def open_avif(stream: io.BytesIO) -> ImageFile.ImageFile:
    """An AVIF's first image; one thread.

    Raises:
        NoReaderError: this Pillow has no libavif.
    """
    try:
        from PIL import AvifImagePlugin

        supported = AvifImagePlugin.SUPPORTED
    except ImportError:
        supported = False
    if not supported:
        raise NoReaderError("AVIF is read by Pillow 11.3 or newer: pip install --upgrade pillow")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    return AvifImagePlugin.AvifImageFile(stream)


def is_cut_short(data: bytes) -> bool:
    """Whether a box of the file is longer than the file."""
    position = 0
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if length == 1:
            length = int.from_bytes(data[position + 8 : position + 16], "big")
        elif length == 0:  # up to the end
            return False
        position += max(8, length)
    return position != len(data)
