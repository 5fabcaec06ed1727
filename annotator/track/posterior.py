"""Std of a smoothed hand: the predicted variance, less the scatter that smoothing removes.

A frame's predicted variance measures all of its error. Part of it is scatter about the track's path, which smoothing
averages out. The rest is common to frames near in time, and no smoother removes it. The share of the scatter is the
mean squared distance between labels and path over the predicted variance. The scatter's part shrinks, or grows in a
gap, as the smoother's own variance does. The common part is the rest of the predicted variance of frames near in time,
weighted by its inverse. It is no less than the scatter: a track that scatters more than predicted also errs more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from annotator.track.smoother import MEMORY_S, Noise, Smoothed

Floats = NDArray[np.floating]

#: Frames farther away than this in time do not count for a frame's variance, unless they are the nearest.
_REACH_S = 4 * MEMORY_S

#: Maximum of the smoother's variance over that of a usual label.
_MAX_GROWTH = 16.0

#: Frames of one step: bounds memory.
BLOCK = 128


def scatter_share(difference: Floats, std: Floats) -> float:
    """Return scatter about the path as a share of the predicted variance; above 1, labels are worse than predicted.

    Args:
        difference: (n, points, axes) labels less path. std: likewise, predicted.
    """
    predicted = float(np.square(std, dtype=np.float64).mean())
    return float(np.square(difference).mean()) / max(predicted, 1e-12)


def variance_ratio(smoothed: Smoothed, noise: Noise, usual_variance: float) -> Floats:
    """Return the smoother's variance (T,) over that of a usual measurement."""
    ratio: Floats = smoothed.variance / ((noise.own + noise.lasting) * usual_variance)
    return ratio.clip(0, _MAX_GROWTH)


def posterior_std(
    time_s: Floats, observed: NDArray[np.bool_], std: Floats, share: float, ratio: Floats
) -> NDArray[np.float32]:
    """Return the std (T, points, axes) of a smoothed hand.

    Args:
        time_s: (T,). observed: (T,) frames whose label counts.
        std: (T, points, axes) predicted; zeros stay zeros.
        share: see `scatter_share`. ratio: (T,) see `variance_ratio`.
    """
    fixed = (std[observed] == 0).all(0)
    blocks = posterior_std_blocks(time_s, observed, std.__getitem__, fixed, share, ratio)
    return np.concatenate(list(blocks))


def posterior_std_blocks(
    time_s: Floats,
    observed: NDArray[np.bool_],
    std_of: Callable[[NDArray[np.int64]], Floats],
    fixed: NDArray[np.bool_],
    share: float,
    ratio: Floats,
) -> Iterator[NDArray[np.float32]]:
    """Yield the std (`BLOCK`, points, axes) of a smoothed hand, frame after frame; see `posterior_std`.

    Args:
        std_of: returns the predicted std (n, points, axes) of some frames.
        fixed: (points, axes) where the std is zero in all observed frames.
    """
    seen = np.flatnonzero(observed)
    factor = np.sqrt(max(1 - share, share) + share * ratio)
    for first in range(0, len(time_s), BLOCK):
        rows = slice(first, first + BLOCK)
        near = _near(time_s[rows], time_s[seen])
        std = std_of(seen[near]).reshape(-1, fixed.size)
        precision = (1 / np.square(np.where(std > 0, std, 1.0), dtype=np.float64)).astype(np.float32)
        away = time_s[rows, None] - time_s[seen][None, near]
        # Relative to the nearest, so that a long gap does not lose all weights.
        log_weight = -0.5 * np.square(away / MEMORY_S)
        weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
        weight = (weight / weight.sum(1, keepdims=True)).astype(np.float32)
        result = (factor[rows, None] / np.sqrt(weight @ precision)).astype(np.float32)
        result[:, fixed.reshape(-1)] = 0
        yield result.reshape(-1, *fixed.shape)


def _near(times: Floats, seen: Floats) -> slice:
    """Return the observed times around some frames, with the nearest on both sides."""
    start = int(np.searchsorted(seen, times[0] - _REACH_S))
    stop = int(np.searchsorted(seen, times[-1] + _REACH_S))
    start = min(start, max(int(np.searchsorted(seen, times[0])) - 1, 0))
    return slice(start, max(stop, int(np.searchsorted(seen, times[-1])) + 1))
