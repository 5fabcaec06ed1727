"""How a stored picture is to be shown: its orientation and the shape of its pixels, from EXIF, XMP and densities.

Nothing else of the metadata is read, and whatever is damaged counts as absent.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION = 274, 282, 283
#: Of EXIF's types, those of whole numbers, and that of a fraction.
_WHOLE = {3: "H", 4: "I"}
_FRACTION = 5

_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")

#: Pixels closer to squares than this are squares, and no camera or scanner makes narrower or flatter ones.
_SQUARE, _NARROWEST = 1.01, 4.0

Density = tuple[float, float]  # pixels along x and y, per the same length


class Shown(NamedTuple):
    """How a picture is to be shown."""

    orientation: int = 1  # of EXIF, 1 to 8
    pixel_aspect: float = 1.0  # width over height of a pixel, as it is stored


def shown_as(exif: bytes, xmp: bytes, density: Density | None, size: tuple[int, int]) -> Shown:
    """How a picture of this stored size is to be shown.

    Args:
        exif: a TIFF, empty where there is none.
        xmp: an XMP packet, likewise. Its orientation counts where EXIF has none.
        density: the file format's own. EXIF's counts where this one is of squares.
        size: width and height, as stored. A density of just these numbers is a mistake of its writer.
    """
    if not exif and not xmp and (density is None or density[0] == density[1]):
        return Shown()
    orientation, exif_density = _of_exif(exif)
    if orientation is None:
        found = _XMP_ORIENTATION.search(xmp)
        orientation = int(found[1]) if found else 1
    aspect = _aspect(density, size)
    return Shown(orientation, aspect if aspect != 1 else _aspect(exif_density, size))


def _aspect(density: Density | None, size: tuple[int, int]) -> float:
    if density is None or not min(density) > 0 or density == size:
        return 1.0
    return sensible_aspect(density[1] / density[0])


def sensible_aspect(pixel_aspect: float) -> float:
    """The width over the height of a pixel; 1 where it is close to it, or no device's."""
    if pixel_aspect <= 0:
        return 1.0
    return pixel_aspect if _SQUARE < max(pixel_aspect, 1 / pixel_aspect) <= _NARROWEST else 1.0


def _of_exif(tiff: bytes) -> tuple[int | None, Density | None]:
    """The first directory's orientation, None where it has none that makes sense, and its density."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    orientation, density = None, [0.0, 0.0]
    if order is None:
        return None, None
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == _ORIENTATION and orientation is None and kind in _WHOLE:
                (value,) = struct.unpack_from(order + _WHOLE[kind], tiff, entry + 8)
                orientation = value if 1 <= value <= 8 else None
            elif tag in (_X_RESOLUTION, _Y_RESOLUTION) and kind == _FRACTION:
                (at,) = struct.unpack_from(order + "I", tiff, entry + 8)
                over, under = struct.unpack_from(order + "II", tiff, at)
                density[tag - _X_RESOLUTION] = over / under if under else 0.0
    except struct.error:
        pass
    return orientation, (density[0], density[1])
