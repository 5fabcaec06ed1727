"""Small photos of smooth noise."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noise_photos() -> list[np.ndarray]:
    """Return four photos (100, W, 3) of widths 120 to 180."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (4, 6, 8, 3), np.uint8)
    return [np.asarray(Image.fromarray(p).resize((120 + 20 * i, 100))) for i, p in enumerate(small)]
