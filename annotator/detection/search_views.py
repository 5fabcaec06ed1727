"""Search views of a photo with fewer hands than `max_hands`: rotated, and in overlapping tiles.

MediaPipe detects palms in the photo scaled to 192 x 192 pixels, where small hands have too few pixels. A tile enlarges
them. Sideways and upside-down hands are detected less often, so each view is also rotated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Sides of square tiles relative to the photo's shorter side.
TILE_SIDES = (1 / 2, 1 / 4)

#: Minimum overlap of neighbouring tiles, relative to their side: a hand up to this size is complete in one of them.
OVERLAP = 0.4

#: Minimum side of a tile: smaller tiles hold only enlarged pixels.
MIN_TILE_PX = 64


@dataclass(frozen=True)
class SearchView:
    """A part of a photo, rotated counterclockwise by `quarters` * 90 degrees."""

    left: int
    top: int
    width: int
    height: int
    quarters: int

    def cut(self, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the part of the photo (H, W, 3), rotated."""
        part = photo[self.top : self.top + self.height, self.left : self.left + self.width]
        return np.ascontiguousarray(np.rot90(part, self.quarters))

    def to_photo(self, landmarks_px: Floats) -> Floats:
        """Return landmarks (N, 3) of the view as pixels of the photo; depth, in the same unit, stays."""
        rotated_width = self.height if self.quarters % 2 else self.width
        rotated_height = self.width if self.quarters % 2 else self.height
        middle = np.array([rotated_width / 2, rotated_height / 2, 0])
        centre = np.array([self.left + self.width / 2, self.top + self.height / 2, 0])
        return self.rotated_back(landmarks_px - middle) + centre

    def rotated_back(self, vectors: Floats) -> Floats:
        """Return vectors (N, 3), x right and y down, in the axes of the photo."""
        x, y, z = vectors.T
        for _ in range(self.quarters % 4):
            x, y = -y, x
        return np.stack([x, y, z], 1)

    def holds(self, landmarks_px: Floats, photo_width: int, photo_height: int) -> bool:
        """Return whether landmarks (N, 3), photo pixels, stay within the view's edges, except edges of the photo."""
        (x1, y1), (x2, y2) = landmarks_px[:, :2].min(0), landmarks_px[:, :2].max(0)
        right, bottom = self.left + self.width, self.top + self.height
        return bool(
            (self.left == 0 or x1 > self.left)
            and (self.top == 0 or y1 > self.top)
            and (right == photo_width or x2 < right)
            and (bottom == photo_height or y2 < bottom)
        )


def search_rounds(width: int, height: int) -> Iterator[list[SearchView]]:
    """Yield the views of each round for a photo of `width` x `height` pixels, the most productive round first."""
    sides_px = [side for share in TILE_SIDES if (side := round(share * min(width, height))) >= MIN_TILE_PX]
    yield [SearchView(0, 0, width, height, quarters) for quarters in (1, 2, 3)]
    for side in sides_px:
        yield _tiles(width, height, side, (0,))
    if sides_px:  # rotated small tiles would take longer than all other views and detect almost no hands
        yield _tiles(width, height, sides_px[0], (1, 2, 3))


def _tiles(width: int, height: int, side: int, quarters: Sequence[int]) -> list[SearchView]:
    """Return overlapping square tiles of the photo, each at all rotations."""
    corners = [(left, top) for top in _starts(height, side) for left in _starts(width, side)]
    return [SearchView(*corner, side, side, quarter) for corner in corners for quarter in quarters]


def _starts(length: int, side: int) -> list[int]:
    """Return where tiles begin along `length` pixels: evenly spread, with at least `OVERLAP` in common."""
    steps = math.ceil((length - side) / ((1 - OVERLAP) * side))
    return [round(step * (length - side) / steps) for step in range(steps + 1)] if steps else [0]
