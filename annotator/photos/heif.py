"""Open HEIC and AVIF, the formats of phones.

pi-heif reads HEIC (an optional dependency: libheif and libde265, LGPL). Pillow's own libavif reads AVIF.
"""

from __future__ import annotations

import io

from PIL import ImageFile

_BRANDS = {
    **dict.fromkeys([b"avif", b"avis"], "AVIF"),
    **dict.fromkeys([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"], "HEIC"),
}
#: Brands of containers for both formats; their compatible brands give the format.
_CONTAINERS = (b"mif1", b"msf1", b"mif2")


class NoReaderError(Exception):
    """The reader of a format is not installed; the message names the package."""


def heif_kind(data: bytes) -> str:
    """Return `HEIC` or `AVIF` from a file's first bytes; empty for other formats."""
    if data[4:8] != b"ftyp":
        return ""
    major = data[8:12]
    if major not in _CONTAINERS:
        return _BRANDS.get(major, "")
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    compatible = {data[at : at + 4] for at in range(16, end, 4)}
    return next((name for brand, name in _BRANDS.items() if brand in compatible), "HEIC")


def open_heic(stream: io.BytesIO) -> ImageFile.ImageFile:
    """Open the main image of a HEIC file; libheif rotates it upright on loading, in one thread.

    Raises:
        NoReaderError: pi-heif is not installed.
    """
    try:
        import pi_heif
    except ImportError:
        raise NoReaderError("HEIC needs pi-heif: pip install 'amvur-annotator[heic]'") from None
    pi_heif.options.DECODE_THREADS = 1
    pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
    image: ImageFile.ImageFile = pi_heif.HeifImageFile(stream)
    return image


def open_avif(stream: io.BytesIO) -> ImageFile.ImageFile:
    """Open the first image of an AVIF file, decoded in one thread.

    Raises:
        NoReaderError: the installed Pillow lacks libavif.
    """
    try:
        from PIL import AvifImagePlugin

        supported = AvifImagePlugin.SUPPORTED
    except ImportError:
        supported = False
    if not supported:
        raise NoReaderError("AVIF needs Pillow 11.3 or newer: pip install --upgrade pillow")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    return AvifImagePlugin.AvifImageFile(stream)


def is_cut_short(data: bytes) -> bool:
    """Return whether the boxes of the container extend beyond the end of the file."""
    position = 0
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if length == 1:
            length = int.from_bytes(data[position + 8 : position + 16], "big")
        elif length == 0:  # up to the end
            return False
        position += max(8, length)
    return position != len(data)
