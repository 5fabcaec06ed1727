"""Read directories of TIFF structures, in which EXIF stores its fields."""

from __future__ import annotations

import struct
from collections.abc import Iterator

#: EXIF's types of integers, with their `struct` formats, and of fractions.
_INTEGERS = {3: "H", 4: "I"}
_FRACTION = 5

_ORDERS = {b"II": "<", b"MM": ">"}


def first_directory(tiff: bytes) -> Iterator[tuple[int, int | float]]:
    """Yield tag and value of each number in the first directory; damaged data ends it."""
    try:
        (start,) = struct.unpack_from(_ORDERS.get(tiff[:2], "<") + "I", tiff, 4)
    except struct.error:
        return
    yield from directory(tiff, start)


def directory(tiff: bytes, start: int) -> Iterator[tuple[int, int | float]]:
    """Yield tag and first value of each integer and fraction of the directory at `start`; damaged data ends it.

    Fractions are floats, 0 where their denominator is 0.
    """
    order = _ORDERS.get(tiff[:2])
    if order is None:
        return
    try:
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if kind in _INTEGERS:
                yield tag, struct.unpack_from(order + _INTEGERS[kind], tiff, entry + 8)[0]
            elif kind == _FRACTION:
                (at,) = struct.unpack_from(order + "I", tiff, entry + 8)
                numerator, denominator = struct.unpack_from(order + "II", tiff, at)
                yield tag, numerator / denominator if denominator else 0.0
    except struct.error:
        return
