"""Statistics of a LeRobot data set, of each episode and of all, for normalisation by its loaders."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_NAMES = tuple(f"q{round(100 * q):02d}" for q in _QUANTILES)

Summary = dict[str, list[Any]]


class NumberStats:
    """Statistics of n numbers per frame, each over the frames in which it is known."""

    def __init__(self, count: int) -> None:
        self._frames = 0
        self._known = np.zeros(count)
        self._sum, self._squares = np.zeros(count), np.zeros(count)
        self._low, self._high = np.full(count, np.inf), np.full(count, -np.inf)
        self._quantiles = np.zeros((len(_QUANTILES), count))

    def episode(self, values: NDArray[Any], known: NDArray[np.bool_]) -> Summary:
        """Add an episode's frames (T, n), of which `known` (T, n) are known, and return its own statistics."""
        one = NumberStats(values.shape[1])
        numbers = np.where(known, values.astype(np.float64), np.nan)
        one._frames = len(values)
        one._known = known.sum(0).astype(np.float64)
        one._sum, one._squares = np.nansum(numbers, 0), np.nansum(numbers**2, 0)
        one._low = np.nanmin(np.where(known, numbers, np.inf), 0)
        one._high = np.nanmax(np.where(known, numbers, -np.inf), 0)
        some = one._known > 0
        if some.any():
            one._quantiles[:, some] = np.nanquantile(numbers[:, some], _QUANTILES, axis=0)
        self._add(one)
        return one.summary()

    def _add(self, one: NumberStats) -> None:
        # As LeRobot does: quantiles of all are the means of the episodes' quantiles.
        known = np.maximum(self._known + one._known, 1)
        self._quantiles = (self._quantiles * self._known + one._quantiles * one._known) / known
        self._frames += one._frames
        self._known += one._known
        self._sum += one._sum
        self._squares += one._squares
        self._low, self._high = np.minimum(self._low, one._low), np.maximum(self._high, one._high)

    def summary(self) -> Summary:
        """Return the statistics; 0 for a number that is never known."""
        known = np.maximum(self._known, 1)
        mean = self._sum / known
        spread = np.sqrt(np.maximum(self._squares / known - mean**2, 0))
        some = self._known > 0
        parts = {"min": self._low, "max": self._high, "mean": mean, "std": spread}
        parts |= dict(zip(_NAMES, self._quantiles, strict=True))
        result = {name: np.where(some, part, 0.0).tolist() for name, part in parts.items()}
        return result | {"count": [self._frames]}


class ColourStats:
    """Statistics of the three colours of photos, 0 to 1, on every eighth pixel of every eighth row."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256))
        self._frames = 0

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Add a photo (H, W, 3)."""
        part = pixels[::8, ::8].reshape(-1, 3)
        self._counts += np.stack([np.bincount(part[:, k], minlength=256) for k in range(3)])
        self._frames += 1

    def merge(self, other: ColourStats) -> None:
        """Add the photos of another."""
        self._counts += other._counts
        self._frames += other._frames

    def summary(self) -> Summary:
        """Return the statistics, (3, 1, 1) each."""
        levels = np.arange(256) / 255
        share = self._counts / self._counts.sum(1, keepdims=True)
        mean = share @ levels
        spread = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))
        below = np.cumsum(share, 1)
        some = self._counts > 0
        parts = {
            "min": levels[some.argmax(1)],
            "max": levels[255 - some[:, ::-1].argmax(1)],
            "mean": mean,
            "std": spread,
        }
        for name, q in zip(_NAMES, _QUANTILES, strict=True):
            parts[name] = levels[(below >= q - 1e-12).argmax(1)]
        return {name: part.reshape(3, 1, 1).tolist() for name, part in parts.items()} | {
            "count": [self._frames]
        }
