"""Keyed draws, made many at a time: scenes take hundreds of small ones, each of which would cost as much."""

from __future__ import annotations

import math

from torch import Tensor

from trainer.keyed import Draws

#: Numbers made at a time.
POOL = 384


class Pool(Draws):
    """The same interface as `Draws`, other numbers. Draws larger than half a pool are made for themselves."""

    def __init__(self, key: Tensor) -> None:
        super().__init__(key)
        self._pools: dict[str, tuple[Tensor, int]] = {}

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, *shape) float32 in [low, high)."""
        values = self._taken("uniform", shape)
        return values if (low, high) == (0.0, 1.0) else values * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32, zero mean and unit variance."""
        return self._taken("normal", shape)

    def _taken(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The next numbers of a pool, a copy: they may be written to."""
        count = math.prod(shape)
        draw = super().uniform if name == "uniform" else super().normal
        if count > POOL // 2:
            return draw(*shape)
        pool, used = self._pools.get(name, (None, POOL))
        if pool is None or used + count > POOL:
            pool, used = draw(POOL), 0
        self._pools[name] = (pool, used + count)
        return pool[:, used : used + count].clone().view(len(self), *shape)
