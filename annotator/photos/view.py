"""A hand behind a lens, as a pinhole camera that looks straight at it would show it.

Networks see crops of pinhole photos. So a crop of any other photo is resampled along undistorted rays. It becomes the
picture of a virtual pinhole camera at the same position, whose optical axis is the ray through the crop's centre. The
axes of that camera are crop axes. Boxes, and all labels in photo pixels, stay in the photo as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from annotator.coordinates import axes_of_direction
from annotator.lens import Lens
from annotator.photos.cut import OUTSIDE_RGB
from annotator.photos.errors import PhotoError

Floats = NDArray[np.float64]

#: Points along each side of a box that decide its position in the view.
_PER_SIDE = 9

#: The farthest point of a view off its axis, degrees: a plane can't show more.
_FARTHEST_DEG = 80.0

#: Rounds in which the view is centred on the box.
_ROUNDS = 4

#: A small step in the view, as a share of its half-side, for slopes.
_STEP = 1e-4

#: Pixels resampled at once.
_AT_ONCE = 1 << 18


@dataclass(frozen=True, eq=False)
class View:
    """A square picture of a virtual pinhole camera: -1 to 1 on both axes, as a crop."""

    lens: Lens
    axes: Floats  # (3, 3) crop axes: from this camera's axes to those of the photo's camera
    half_tan: float  # half the square's side at distance 1

    def photo_from_view(self, points: ArrayLike) -> Floats:
        """Convert points (..., 2) of the square to photo pixels (..., 2); NaN beyond the lens."""
        return self.lens.project(self._rays(points))

    def nearest_in_photo(self, points: ArrayLike) -> Floats:
        """Return `photo_from_view`, and for points beyond the lens the nearest direction that it shows."""
        return self.lens.project_nearest(self._rays(points))

    def _rays(self, points: ArrayLike) -> Floats:
        """Return rays (..., 3) through points (..., 2) of the square, axes of the photo's camera."""
        plane = np.asarray(points, np.float64) * self.half_tan
        rays: Floats = np.concatenate([plane, np.ones_like(plane[..., :1])], -1) @ self.axes.T
        return rays

    def slopes(self, points: ArrayLike) -> Floats:
        """Return the Jacobians (..., 2, 2) of `photo_from_view`: photo pixels per half-side."""
        points = np.asarray(points, np.float64)
        columns = [
            (self.photo_from_view(points + step) - self.photo_from_view(points - step)) / (2 * _STEP)
            for step in _STEP * np.eye(2)
        ]
        return np.stack(columns, -1)

    def square_px(self) -> tuple[Floats, float]:
        """Return centre (2,) and half-side of the photo's square that the view shows, as far as it is one."""
        half_side_px = float(np.sqrt(abs(np.linalg.det(self.slopes(np.zeros(2))))))
        return self.photo_from_view(np.zeros(2)), half_side_px


def view_of_box(lens: Lens, box_xyxy: Sequence[float], padding: float) -> View:
    """Return the view of a box in photo pixels, with `padding` times the box's longer side.

    Raises:
        PhotoError: the lens shows nothing in the middle of the box.
    """
    x0, y0, x1, y1 = (float(v) for v in box_xyxy)
    grid = np.stack(np.meshgrid(np.linspace(x0, x1, _PER_SIDE), np.linspace(y0, y1, _PER_SIDE)), -1)
    rays = lens.rays(grid.reshape(-1, 2))
    direction = rays[len(rays) // 2]
    if np.isnan(direction).any():
        raise PhotoError("box_outside", "the middle of the box lies beyond the field of view of the lens")
    for _ in range(_ROUNDS):
        axes = axes_of_direction(direction)
        plane = _on_plane(rays @ axes)
        low, high = np.nanmin(plane, 0), np.nanmax(plane, 0)
        ray = axes @ [*(low + high) / 2, 1]
        direction = ray / np.linalg.norm(ray)
    axes = axes_of_direction(direction)
    plane = _on_plane(rays @ axes)
    half_tan = float((np.nanmax(plane, 0) - np.nanmin(plane, 0)).max() / 2 * padding)
    return View(lens, axes, min(half_tan, np.tan(np.radians(_FARTHEST_DEG))))


def view_of_square(lens: Lens, centre_px: ArrayLike, half_side_px: float) -> View:
    """Return the view with this `square_px`; its axes are NaN where the lens shows nothing at the centre."""
    axes = np.asarray(axes_of_direction(lens.rays(centre_px)), np.float64)
    return View(lens, axes, half_side_px / View(lens, axes, 1.0).square_px()[1])


def _on_plane(rays: Floats) -> Floats:
    """Return where rays (..., 3) meet the plane at distance 1 (..., 2); NaN where that is too far."""
    with np.errstate(all="ignore"):
        is_near = rays[..., 2:] > np.cos(np.radians(_FARTHEST_DEG))
        return np.where(is_near, rays[..., :2] / rays[..., 2:], np.nan)


def cut_view(
    pixels: NDArray[np.uint8], view: View, crop_px: int, photo_width: int, margin: float = 1.0
) -> NDArray[np.uint8]:
    """Resample a view: (crop_px, crop_px, 3) uint8, `OUTSIDE_RGB` where the photo shows nothing.

    Args:
        pixels: (H, W, 3), the photo or a scaled-down version of it.
        view: of the full-size photo.
        crop_px: side of the result.
        photo_width: of the full-size photo.
        margin: side of the area that the result covers, over the view's.
    """
    scale = pixels.shape[1] / photo_width
    per_pixel = 2 * view.square_px()[1] * margin * scale / crop_px
    if per_pixel >= 2:  # as `photos.cut` does: so few samples do not alias
        pixels = np.asarray(Image.fromarray(pixels).reduce(int(per_pixel)))
        scale /= int(per_pixel)
    samples = 2 * crop_px
    at = margin * ((np.arange(samples) + 0.5) / crop_px - 1)
    seen = np.empty((samples, samples, 3), np.float32)
    step = max(2, _AT_ONCE // samples)
    for top in range(0, samples, step):
        x, y = np.meshgrid(at, at[top : top + step])
        seen[top : top + step] = _sampled(pixels, view.photo_from_view(np.stack([x, y], -1)) * scale)
    means = seen.reshape(crop_px, 2, crop_px, 2, 3).mean((1, 3))
    return np.asarray(np.rint(means), np.uint8)


def _sampled(pixels: NDArray[np.uint8], points: Floats) -> NDArray[np.float32]:
    """Return the colours (..., 3) at points (..., 2), bilinearly; pixel centres are at half integers."""
    height, width = pixels.shape[:2]
    x, y = points[..., 0], points[..., 1]
    with np.errstate(invalid="ignore"):
        is_inside = (x >= 0) & (y >= 0) & (x <= width) & (y <= height)  # false for NaN
    x = np.clip(np.where(is_inside, x, 0) - 0.5, 0, width - 1)
    y = np.clip(np.where(is_inside, y, 0) - 0.5, 0, height - 1)
    left = np.minimum(x.astype(np.int64), max(width - 2, 0))
    top = np.minimum(y.astype(np.int64), max(height - 2, 0))
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across = (x - left).astype(np.float32)[..., None]
    down = (y - top).astype(np.float32)[..., None]
    upper = pixels[top, left] * (1 - across) + pixels[top, right] * across
    lower = pixels[bottom, left] * (1 - across) + pixels[bottom, right] * across
    colours = upper * (1 - down) + lower * down
    return np.where(is_inside[..., None], colours, np.array(OUTSIDE_RGB, np.float32))
