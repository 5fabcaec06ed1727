"""The lens of a photo's camera: between directions in camera axes and photo pixels, with OpenCV's distortion models.

- `pinhole`: k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4, tau_x, tau_y: the first 4, 5, 8, 12 or all 14.
- `fisheye`: k1 to k4, a polynomial in the angle off the optical axis.

A polynomial fitted to a photo turns around somewhere beyond its edge. Directions past that angle are not in the photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LensModel = Literal["pinhole", "fisheye"]

#: Valid numbers of coefficients of each model.
COEFFICIENTS: dict[str, tuple[int, ...]] = {"pinhole": (0, 4, 5, 8, 12, 14), "fisheye": (0, 4)}

#: The largest angles off the optical axis, degrees, and the angles up to it at which a model is evaluated.
_LIMIT_DEG = {"pinhole": 89.0, "fisheye": 180.0}
_ANGLES = 4096

#: Newton's steps from pixels to rays, and the largest remaining error in focal lengths.
_STEPS, _MAX_ERROR = 12, 1e-6

#: Ratio of both focal lengths up to which they count as equal: half a pixel at the edge of 1,000.
_EQUAL_FOCAL = 1.001


@dataclass(frozen=True)
class Lens:
    """A camera's focal lengths and principal point in photo pixels, and its distortion."""

    fx: float
    fy: float
    cx: float
    cy: float
    model: LensModel = "pinhole"
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.model not in get_args(LensModel):
            raise ValueError(f"the camera model is {self.model!r}: expected {' or '.join(COEFFICIENTS)}")
        if len(self.distortion) not in COEFFICIENTS[self.model]:
            numbers = ", ".join(map(str, COEFFICIENTS[self.model]))
            raise ValueError(
                f"the distortion has {len(self.distortion)} coefficients: {self.model} takes {numbers}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether photos equal those of a pinhole camera with one focal length."""
        ratio = max(self.fx / self.fy, self.fy / self.fx)
        return self.model == "pinhole" and not any(self.distortion) and ratio <= _EQUAL_FOCAL

    def project(self, directions: ArrayLike) -> Floats:
        """Return the photo pixels (..., 2) of points or directions (..., 3) in camera axes; NaN beyond the lens."""
        x, y, z = np.moveaxis(np.asarray(directions, np.float64), -1, 0)
        across = np.hypot(x, y)
        angle = np.arctan2(across, z)
        with np.errstate(all="ignore"):
            if self.model == "fisheye":
                share = np.where(across > 0, self._radial(angle) / across, 0)
                seen = np.stack([x * share, y * share], -1)
            else:
                seen = self._distorted(np.stack([x / z, y / z], -1))
            seen = np.where((angle <= self._table[0][-1] + 1e-9)[..., None], seen, np.nan)
        found: Floats = seen * [self.fx, self.fy] + [self.cx, self.cy]
        return found

    def project_nearest(self, directions: ArrayLike) -> Floats:
        """Return `project`, and for directions beyond the lens the pixels (..., 2) of the nearest one it shows."""
        x, y, z = np.moveaxis(np.asarray(directions, np.float64), -1, 0)
        across = np.hypot(x, y)
        angle = np.minimum(np.arctan2(across, z), self._table[0][-1])
        share = np.sin(angle) / np.where(across > 0, across, 1)
        return self.project(np.stack([x * share, y * share, np.cos(angle)], -1))

    def rays(self, points_px: ArrayLike) -> Floats:
        """Return the unit directions (..., 3) that photo pixels (..., 2) show; NaN beyond the lens."""
        seen = (np.asarray(points_px, np.float64) - [self.cx, self.cy]) / [self.fx, self.fy]
        radius = np.linalg.norm(seen, axis=-1)
        angles, radii = self._table
        with np.errstate(all="ignore"):
            angle = np.interp(radius, radii, angles)
            if self.model == "fisheye":
                for _ in range(2):  # the table is accurate to 1e-7
                    step = 1e-6
                    slope = (self._radial(angle + step) - self._radial(angle - step)) / (2 * step)
                    angle = angle - (self._radial(angle) - radius) / slope
                angle = np.where(radius <= radii[-1], angle, np.nan)
            outward = seen / np.where(radius > 0, radius, 1)[..., None]
            rays = np.concatenate([outward * np.sin(angle)[..., None], np.cos(angle)[..., None]], -1)
            return self._refined(rays, seen) if self.model == "pinhole" else rays

    @cached_property
    def _table(self) -> tuple[Floats, Floats]:
        """Angles off the axis and the radii at which they are seen, in focal lengths, up to where these turn."""
        angles = np.radians(np.linspace(0, _LIMIT_DEG[self.model], _ANGLES))
        radii = self._radial(angles)
        peaks = np.flatnonzero(~(np.diff(radii) > 0))  # true for NaN
        end = peaks[0] + 1 if len(peaks) else _ANGLES
        return angles[:end], radii[:end]

    def _radial(self, angle: Floats) -> Floats:
        """Return the radius at which an angle off the axis is seen, in focal lengths, by the radial terms alone."""
        if self.model == "fisheye":
            k = self._padded(4)
            square = angle**2
            return angle * (1 + square * (k[0] + square * (k[1] + square * (k[2] + square * k[3]))))
        with np.errstate(all="ignore"):
            radius = np.tan(angle)
            share = self._radial_share(radius**2)
            return np.where(share > 0, radius * share, np.nan)

    def _padded(self, count: int) -> tuple[float, ...]:
        return (*self.distortion, *(0.0,) * (count - len(self.distortion)))

    def _radial_share(self, square: Floats) -> Floats:
        k1, k2, _, _, k3, k4, k5, k6 = self._padded(14)[:8]
        over = 1 + square * (k1 + square * (k2 + square * k3))
        under = 1 + square * (k4 + square * (k5 + square * k6))
        share: Floats = np.where(under > 0, over / under, np.nan)
        return share

    def _distorted(self, points: Floats) -> Floats:
        """Distort points (..., 2) of the plane at distance 1."""
        k = self._padded(14)
        p1, p2, (s1, s2, s3, s4) = k[2], k[3], k[8:12]
        x, y = points[..., 0], points[..., 1]
        square = x * x + y * y
        share = self._radial_share(square)
        seen = np.stack(
            [
                x * share + 2 * p1 * x * y + p2 * (square + 2 * x * x) + square * (s1 + square * s2),
                y * share + p1 * (square + 2 * y * y) + 2 * p2 * x * y + square * (s3 + square * s4),
            ],
            -1,
        )
        if not any(k[12:]):
            return seen
        tilted = np.concatenate([seen, np.ones_like(x)[..., None]], -1) @ _tilt(*k[12:]).T
        return tilted[..., :2] / tilted[..., 2:]

    def _refined(self, rays: Floats, seen: Floats) -> Floats:
        """Refine rays that ignore all but radial terms, by Newton's method in the plane at distance 1."""
        points = rays[..., :2] / rays[..., 2:]
        step = 1e-6
        for _ in range(_STEPS):
            slopes = [
                (self._distorted(points + move) - self._distorted(points - move)) / (2 * step)
                for move in step * np.eye(2)
            ]
            (a, c), (b, d) = (np.moveaxis(slope, -1, 0) for slope in slopes)
            x, y = np.moveaxis(seen - self._distorted(points), -1, 0)
            points = points + np.stack([d * x - b * y, a * y - c * x], -1) / (a * d - b * c)[..., None]
        error = np.linalg.norm(self._distorted(points) - seen, axis=-1)
        found = np.concatenate([points, np.ones_like(points[..., :1])], -1)
        angle = np.arctan(np.linalg.norm(points, axis=-1))
        is_seen = (error <= _MAX_ERROR) & (angle <= self._table[0][-1])
        unit: Floats = found / np.linalg.norm(found, axis=-1, keepdims=True)
        return np.where(is_seen[..., None], unit, np.nan)


def _tilt(x_rad: float, y_rad: float) -> Floats:
    """Return the homography (3, 3) of a sensor that is tilted about its axes."""
    cos_x, sin_x, cos_y, sin_y = np.cos(x_rad), np.sin(x_rad), np.cos(y_rad), np.sin(y_rad)
    about_x = np.array([[1, 0, 0], [0, cos_x, sin_x], [0, -sin_x, cos_x]])
    about_y = np.array([[cos_y, 0, -sin_y], [0, 1, 0], [sin_y, 0, cos_y]])
    rotation = about_y @ about_x
    onto = np.array([[rotation[2, 2], 0, -rotation[0, 2]], [0, rotation[2, 2], -rotation[1, 2]], [0, 0, 1]])
    tilt: Floats = onto @ rotation
    return tilt
