"""Colours: CIE Lab, in which skin is measured, to light, and light to what a camera stores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Floats = NDArray[np.floating]

_WHITE_D65 = np.array([0.95047, 1.0, 1.08883])
_RGB_FROM_XYZ = np.array(
    [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ]
)


def lab_to_linear(lab: ArrayLike) -> Floats:
    """CIE Lab under D65 (..., 3) to linear RGB (..., 3) in 0..1: shares of light, not stored values."""
    lightness, a, b = np.moveaxis(np.asarray(lab, np.float64), -1, 0)
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = _WHITE_D65 * np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2)
    return (xyz @ _RGB_FROM_XYZ.T).clip(0, 1)


def stored(linear: Tensor) -> Tensor:
    """Linear light in 0..1 to sRGB values in 0..1."""
    return (linear * 12.92).where(linear <= 0.0031308, 1.055 * linear.clamp(min=1e-4) ** (1 / 2.4) - 0.055)
