"""Patterns for cloth, walls and objects, drawn once: stripes, plaid, bricks, text, dots, shelves, foliage."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Side of a pattern in pixels; patterns repeat.
SIDE = 64
COUNT = 48


def patterns(seed: int, device: torch.device) -> Tensor:
    """Return patterns (COUNT, SIDE, SIDE) float32, from 0 for one colour to 1 for the other."""
    generator = np.random.default_rng([seed, 77])
    kinds = (_stripes, _plaid, _bricks, _text, _dots, _shelves, _clouds, _plain)
    drawn = [kinds[k % len(kinds)](generator) for k in range(COUNT)]
    return torch.from_numpy(np.stack(drawn).astype(np.float32)).to(device)


def _stripes(generator: np.random.Generator) -> np.ndarray:
    period = generator.choice([4, 8, 16, 32])
    share = generator.uniform(0.2, 0.8)
    return np.broadcast_to((np.arange(SIDE) % period < share * period)[:, None], (SIDE, SIDE)) * 1.0


def _plaid(generator: np.random.Generator) -> np.ndarray:
    a, b = _stripes(generator), _stripes(generator)
    return (a + b.T) / 2 * 0.8 + 0.2 * _stripes(generator).T


def _bricks(generator: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    row = y // 8
    mortar = (y % 8 < 1) | ((x + 8 * (row % 2)) % 16 < 1)
    tone = generator.uniform(0, 0.4, (8, 5))[row, ((x + 8 * (row % 2)) // 16)]
    return np.where(mortar, 1.0, tone)


def _text(generator: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    ink = generator.random((SIDE, SIDE)) < 0.55
    words = np.repeat(generator.random((SIDE // 6 + 1, SIDE // 4)) < 0.8, 4, 1)[y // 6, x]
    return 1.0 - (ink & words & (y % 6 < 4))


def _dots(generator: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    period = generator.choice([8, 16, 32])
    r = np.hypot(y % period - period / 2, x % period - period / 2)
    return (r < generator.uniform(0.15, 0.4) * period) * 1.0


def _shelves(generator: np.random.Generator) -> np.ndarray:
    books = np.repeat(generator.random((4, 32)), 2, 1)[:, :SIDE]
    rows = np.repeat(books, 16, 0)
    rows[np.arange(SIDE) % 16 < 2] = 0.1
    return rows


def _clouds(generator: np.random.Generator) -> np.ndarray:
    frequency = np.fft.fftfreq(SIDE)
    radius = np.hypot(frequency[:, None], frequency[None]) + 1 / SIDE
    noise = np.fft.ifft2(
        np.fft.fft2(generator.normal(size=(SIDE, SIDE))) / radius ** generator.uniform(0.8, 1.8)
    ).real
    low, high = np.quantile(noise, [0.05, 0.95])
    return ((noise - low) / (high - low)).clip(0, 1)


def _plain(generator: np.random.Generator) -> np.ndarray:
    return _clouds(generator) * 0.15
