"""Colours of predicted standard deviations, from low to high."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: RGB 0..255, low to high std; they also differ in lightness.
STOPS = np.array([[38, 70, 132], [44, 140, 153], [131, 196, 118], [246, 205, 82], [222, 84, 47]], np.float32)


def std_colours(std_mm: np.ndarray, low_mm: float, high_mm: float) -> np.ndarray:
    """Map std in millimetres (...) to RGB in 0..1 (..., 3); `low_mm` and less has the first colour, NaN the last."""
    std_mm = np.nan_to_num(std_mm, nan=high_mm)
    position = np.clip((std_mm - low_mm) / max(high_mm - low_mm, 1e-6), 0, 1) * (len(STOPS) - 1)
    below = np.minimum(position.astype(int), len(STOPS) - 2)
    part = (position - below)[..., None]
    return ((1 - part) * STOPS[below] + part * STOPS[below + 1]) / 255


def std_range(std_mm: NDArray[np.floating]) -> tuple[float, float]:
    """Return the limits of a colour scale, millimetres; at least 1 mm apart, so that noise does not fill it."""
    std_mm = std_mm[np.isfinite(std_mm)]
    low, high = (float(v) for v in np.percentile(std_mm, [2, 98])) if len(std_mm) else (0.0, 1.0)
    middle, half = (low + high) / 2, max(high - low, 1.0) / 2
    return middle - half, middle + half
