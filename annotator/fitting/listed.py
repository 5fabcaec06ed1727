"""Hands with landmarks, as sources list them: the input of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.sources.entry import ListedHand


@dataclass(frozen=True, eq=False)
class ListedHands:
    """n hands of several photos, with landmarks."""

    hands: Sequence[ListedHand]
    photo_size_px: NDArray[np.float64]  # (n, 2) width, height
    focal_px: NDArray[np.float64]  # (n,) NaN where unknown

    def __len__(self) -> int:
        return len(self.hands)

    def __getitem__(self, rows: slice) -> ListedHands:
        return ListedHands(self.hands[rows], self.photo_size_px[rows], self.focal_px[rows])
