"""Keyed draws in blocks: a scene takes hundreds of small draws, each as slow as a block."""

from __future__ import annotations

import math

from torch import Tensor

from trainer.keyed_random import Draws

#: Numbers per block.
POOL = 384


class Pool(Draws):
    """`Draws` from blocks: the same interface, different numbers. Draws above half a block bypass it."""

    def __init__(self, key: Tensor) -> None:
        super().__init__(key)
        self._pools: dict[str, tuple[Tensor, int]] = {}

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return uniform numbers (B, *shape) float32 in [low, high)."""
        values = self._taken("uniform", shape)
        return values if (low, high) == (0.0, 1.0) else values * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """Return normal numbers (B, *shape) float32 of zero mean and unit variance."""
        return self._taken("normal", shape)

    def _taken(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a writable copy of the next numbers of a block."""
        count = math.prod(shape)
        draw = super().uniform if name == "uniform" else super().normal
        if count > POOL // 2:
            return draw(*shape)
        pool, used = self._pools.get(name, (None, POOL))
        if pool is None or used + count > POOL:
            pool, used = draw(POOL), 0
        self._pools[name] = (pool, used + count)
        return pool[:, used : used + count].clone().view(len(self), *shape)
