"""Random numbers that depend only on a key per example.

An example draws the same numbers in any batch, on any worker or device. So training on two workers, or resumed after a
kill, repeats the steps of one worker. Counter-based: each number is a hash (splitmix64) of the example's key and the
number's index.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, odd
_MIX = (-4658895280553007687, -7723592293110705685)


def _mixed(values: Tensor) -> Tensor:
    """Apply splitmix64's finaliser to int64 (wrapping): every input bit flips about half of the output bits."""
    values = (values ^ ((values >> 30) & ((1 << 34) - 1))) * _MIX[0]
    values = (values ^ ((values >> 27) & ((1 << 37) - 1))) * _MIX[1]
    return values ^ ((values >> 31) & ((1 << 33) - 1))


def keys(*parts: int | Tensor) -> Tensor:
    """Return one key per example from integers, e.g. `keys(seed, step, example)`; tensors (B,) broadcast."""
    key = torch.zeros((), dtype=torch.int64)
    for part in parts:
        key = _mixed((key + _GOLDEN) ^ _mixed(torch.as_tensor(part, dtype=torch.int64) + _GOLDEN))
    return key.reshape(-1)


class Draws:
    """A stream of random numbers per example, for B examples; calls in the same order give the same numbers."""

    def __init__(self, key: Tensor) -> None:
        """Start the streams of `key` (B,) int64, on its device."""
        self.key = key
        self._calls = 0

    def __len__(self) -> int:
        return len(self.key)

    def _hashes(self, count: int) -> Tensor:
        """Return the next hashes (B, count) int64."""
        self._calls += 1
        stream = _mixed(self.key + torch.full_like(self.key, self._calls) * _GOLDEN)
        return _mixed(stream[:, None] + torch.arange(1, count + 1, device=self.key.device) * _GOLDEN)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return uniform numbers (B, *shape) float32 in [low, high)."""
        bits = (self._hashes(math.prod(shape)) >> 40) & ((1 << 24) - 1)
        return (bits.float() * (2.0**-24) * (high - low) + low).view(len(self), *shape)

    def normal(self, *shape: int) -> Tensor:
        """Return normal numbers (B, *shape) float32 of zero mean and unit variance (Box and Muller)."""
        count = math.prod(shape)
        hashes = self._hashes((count + 1) // 2)
        # (0, 1] for the logarithm; 24 bits each suffice.
        radius = ((((hashes >> 32) & 0xFFFFFF) + 1).float() * 2.0**-24).log().mul(-2).sqrt()
        angle = (hashes & 0xFFFFFF).float() * (2 * math.pi * 2.0**-24)
        both = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
        return both[:, :count].reshape(len(self), *shape)

    def chance(self, share: float) -> Tensor:
        """Return (B,) bool, true with this probability."""
        return self.uniform() < share

    def choice(self, shares: list[float]) -> Tensor:
        """Return (B,) int64, index i with probability proportional to shares[i]."""
        edges = torch.tensor(shares, device=self.key.device).cumsum(0)
        return torch.bucketize(self.uniform() * edges[-1], edges[:-1], right=True)
