"""Hands behind a lens: from their views to the photo of an ideal fisheye, in which tracks are smoothed, and back.

A view changes from label to label. The ideal fisheye is the same for a whole sequence. Distances in its photo are
angles, so it shows every direction, and any position has pixels there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.coordinates import rotated_std
from annotator.labels.crop_hands import position_in_view
from annotator.lens import Lens
from annotator.photos.crops import BOX_PADDING
from annotator.photos.errors import PhotoError
from annotator.photos.view import View, view_of_box

Floats = NDArray[np.floating]

#: Minimum cosine between a point's ray and a view's axis; smoothing may move a point beyond any view.
_MIN_Z = 0.1


class Placement(NamedTuple):
    """Scale and position of a hand: in a view, or in the photo of the ideal fisheye."""

    scale: float  # half-sides of the view, or pixels, per millimetre
    position: Floats  # (2,) half-sides of the view, or pixels


def fisheye_from_view(view: View, hand: Placement, focal_px: float, principal_px: Floats) -> Placement:
    """Convert a placement in a view to one in the photo of the ideal fisheye."""
    on_plane = view.half_tan * hand.position
    position_px = _ideal_fisheye(focal_px, principal_px).project(view.axes @ [*on_plane, 1])
    return Placement(hand.scale * view.half_tan * focal_px, position_px)


def view_from_fisheye(view: View, hand: Placement, focal_px: float, principal_px: Floats) -> Placement:
    """Convert a placement in the photo of the ideal fisheye to one in a view."""
    x, y, z = _ideal_fisheye(focal_px, principal_px).rays(hand.position) @ view.axes
    position = np.array([x, y]) / max(z, _MIN_Z) / view.half_tan
    return Placement(hand.scale / (view.half_tan * focal_px), position)


def _ideal_fisheye(focal_px: float, principal_px: Floats) -> Lens:
    cx, cy = (float(value) for value in principal_px)
    return Lens(focal_px, focal_px, cx, cy, "fisheye")


def view_around(box_xyxy: Floats, nearest: View) -> View:
    """Return the view of a box; `nearest` where the lens shows nothing in its middle."""
    try:
        return view_of_box(nearest.lens, box_xyxy.tolist(), BOX_PADDING)
    except PhotoError:
        return nearest


def wrist_in_view(
    view: View, points: Floats, joints_mm: Floats, std_mm: Floats, std_px: Floats
) -> tuple[Floats, Floats]:
    """Return the wrist's position (3,) and its covariance (3, 3), of joints (21, 3) that are at `points` of a view."""
    # Joints beyond the lens have no slope; that of the middle is near.
    areas = np.abs(np.linalg.det(np.nan_to_num(view.slopes(points))))
    px_per_tan = np.sqrt(np.where(areas > 0, areas, view.square_px()[1] ** 2))[:, None] / view.half_tan
    return position_in_view(
        view, points, joints_mm @ view.axes, rotated_std(std_mm, view.axes.T), std_px / px_per_tan
    )
