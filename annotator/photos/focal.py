"""Read focal lengths of photos from EXIF, and of videos, where they are of a camera's whole, unedited picture.

Programs that cut photos copy EXIF. So a focal length counts only if EXIF's pixel dimensions have the photo's aspect.
It must also be the aspect of a camera's pictures, because some programs update the dimensions. A cut of the same aspect
is treated as a smaller photo.
"""

from __future__ import annotations

import math

from annotator.photos.ifd import directory, first_directory

_EXIF_DIRECTORY = 0x8769
_WIDTH, _HEIGHT = 0xA002, 0xA003
_FOCAL_MM, _FOCAL_35 = 0x920A, 0xA405
_PER_UNIT, _UNIT, _ZOOM = 0xA20E, 0xA210, 0xA404

#: Millimetres of EXIF's resolution units; inches where the unit is missing.
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}

#: Aspects of cameras' pictures, and the largest relative difference from one of them. Square cuts are left out.
_ASPECTS, _ASPECT_TOLERANCE = (4 / 3, 3 / 2, 16 / 9), 0.02

#: Width and diagonal of 35 mm film. CIPA's equivalent focal length compares diagonals.
_FILM_WIDTH_MM, _FILM_DIAGONAL_MM = 36.0, math.hypot(36, 24)

#: Plausible equivalent focal lengths and sensor widths, millimetres.
_FOCAL_LIMITS_MM, _SENSOR_LIMITS_MM = (8.0, 2000.0), (3.0, 60.0)

#: The largest ratio of both focal lengths at which the sensor's own, which is not rounded, counts.
_MAX_RATIO = 1.15


def exif_focal_px(tiff: bytes, size: tuple[int, int]) -> float | None:
    """Return the focal length in pixels of a photo; None where EXIF has none or it can't be trusted.

    Args:
        tiff: EXIF as a TIFF structure; may be empty or damaged.
        size: width and height of the photo in pixels, either way round.
    """
    start = dict(first_directory(tiff)).get(_EXIF_DIRECTORY)
    fields = dict(directory(tiff, start)) if isinstance(start, int) else {}
    short, long = sorted(size)
    exif_short, exif_long = sorted((fields.get(_WIDTH, 0), fields.get(_HEIGHT, 0)))
    # Digital zoom scales the picture, and only some cameras include it in the equivalent focal length.
    if exif_short <= 0 or fields.get(_ZOOM, 0) > 1 or not _is_cameras(exif_long / exif_short):
        return None
    if abs(short * exif_long - long * exif_short) > exif_long:  # more than a pixel of rounding
        return None
    from_sensor = _from_sensor(fields, exif_long)
    sensor_px = from_sensor * long / exif_long if from_sensor else None
    film_px = _on_film(fields.get(_FOCAL_35, 0), size)
    if film_px is None:
        return sensor_px
    if sensor_px and max(sensor_px / film_px, film_px / sensor_px) <= _MAX_RATIO:
        return sensor_px
    return film_px


def video_focal_px(film_mm: float, size: tuple[int, int]) -> float | None:
    """Return the focal length in pixels of a video that states one; None where it can't be trusted.

    Args:
        film_mm: the focal length that is equivalent on 35 mm film.
        size: width and height of frames in pixels, either way round.
    """
    short, long = sorted(size)
    return _on_film(film_mm, size) if _is_cameras(long / short) else None


def _on_film(film_mm: float, size: tuple[int, int]) -> float | None:
    """Return the focal length in pixels for an equivalent one; None where it is implausible."""
    if not _FOCAL_LIMITS_MM[0] <= film_mm <= _FOCAL_LIMITS_MM[1]:
        return None
    # Pictures wider than 3:2 are cut from sensors that are not, and keep their width.
    return film_mm * max(math.hypot(*size) / _FILM_DIAGONAL_MM, max(size) / _FILM_WIDTH_MM)


def _is_cameras(aspect: float) -> bool:
    return any(abs(aspect / known - 1) <= _ASPECT_TOLERANCE for known in _ASPECTS)


def _from_sensor(fields: dict[int, int | float], exif_long: float) -> float | None:
    """Return the focal length in pixels of EXIF's dimensions, from the sensor's pixels per millimetre."""
    per_mm = fields.get(_PER_UNIT, 0) / _UNIT_MM.get(int(fields.get(_UNIT, 2)), math.inf)
    focal_mm = fields.get(_FOCAL_MM, 0)
    if per_mm <= 0 or not _SENSOR_LIMITS_MM[0] <= exif_long / per_mm <= _SENSOR_LIMITS_MM[1]:
        return None
    film_mm = focal_mm * per_mm / exif_long * _FILM_WIDTH_MM
    return focal_mm * per_mm if _FOCAL_LIMITS_MM[0] <= film_mm <= _FOCAL_LIMITS_MM[1] else None
