"""Read how to display a stored picture: its orientation and pixel shape, from EXIF, XMP and densities.

Damaged metadata counts as absent.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from annotator.photos.ifd import first_directory

_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION = 274, 282, 283

_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")

#: Ratios of pixel sides: up to the first, pixels count as square; beyond the second, no camera or scanner makes them.
_MAX_SQUARE, _MAX_ASPECT = 1.01, 4.0

Density = tuple[float, float]  # pixels along x and y, per the same length


class Display(NamedTuple):
    """How to display a picture."""

    orientation: int = 1  # EXIF's code, 1 to 8
    pixel_aspect: float = 1.0  # width over height of a stored pixel


def shown_as(exif: bytes, xmp: bytes, density: Density | None, size: tuple[int, int]) -> Display:
    """Return how to display a picture.

    Args:
        exif: EXIF as a TIFF structure; may be empty.
        xmp: an XMP packet; may be empty. Its orientation applies if EXIF has none.
        density: the density in the file's header. EXIF's density applies if this one gives square pixels.
        size: stored width and height. A density equal to them is an error of the writing program, and is ignored.
    """
    if not exif and not xmp and (density is None or density[0] == density[1]):
        return Display()
    orientation, exif_density = _exif_fields(exif)
    if orientation is None:
        match = _XMP_ORIENTATION.search(xmp)
        orientation = int(match[1]) if match else 1
    aspect = _aspect(density, size)
    return Display(orientation, aspect if aspect != 1 else _aspect(exif_density, size))


def _aspect(density: Density | None, size: tuple[int, int]) -> float:
    if density is None or not min(density) > 0 or density == size:
        return 1.0
    return sensible_aspect(density[1] / density[0])


def sensible_aspect(pixel_aspect: float) -> float:
    """Return the width over the height of a pixel; 1 for nearly square pixels and implausible values."""
    if pixel_aspect <= 0:
        return 1.0
    return pixel_aspect if _MAX_SQUARE < max(pixel_aspect, 1 / pixel_aspect) <= _MAX_ASPECT else 1.0


def _exif_fields(tiff: bytes) -> tuple[int | None, Density | None]:
    """Return the first directory's orientation, None if absent or invalid, and its density."""
    orientation, density = None, [0.0, 0.0]
    for tag, value in first_directory(tiff):
        if tag == _ORIENTATION and orientation is None and isinstance(value, int):
            orientation = value if 1 <= value <= 8 else None
        elif tag in (_X_RESOLUTION, _Y_RESOLUTION) and isinstance(value, float):
            density[tag - _X_RESOLUTION] = value
    return orientation, (density[0], density[1])
