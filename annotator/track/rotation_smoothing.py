"""Smooth rotations in the tangent space of their path."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.coordinates import rotation_matrices, rotation_vectors
from annotator.track.robust import local_medians, rotation_weights
from annotator.track.smoother import Floats, Noise, Observations, Smoothed, fit_noise, smooth

#: Rounds after which a smoothed path of rotations has converged.
_ROUNDS = 3


class SmoothedRotations(NamedTuple):
    """A smoothed path of rotations."""

    rotations: Floats  # (T, 3, 3)
    smoothed: Smoothed  # the posterior in the tangent space, radians
    noise: Noise  # as fitted
    weight: Floats  # (T,) of each frame's label


def smooth_rotations(
    time_s: Floats, rotations: Floats, variance: Floats, observed: NDArray[np.bool_]
) -> SmoothedRotations:
    """Smooth rotations (T, 3, 3) of nearly constant angular velocity in their own axes.

    The path is unrolled: the small rotations from frame to frame are vectors of the tangent space, and are added up. So
    rotations of any size have no seam. Measurements lie in the tangent space at the current path, and the path is
    updated until it converges. It starts at local medians, and in each round labels far off weigh less.
    """
    near = rotations.copy()
    near[observed] = local_medians(time_s[observed], rotations[observed])
    path = filled(time_s, near, observed)
    weight = np.ones(len(path))
    noise: Noise | None = None
    for _ in range(_ROUNDS):
        unrolled = _unrolled(path)
        apart = rotation_vectors(path.swapaxes(1, 2) @ np.where(observed[:, None, None], rotations, path))
        weight[observed] = rotation_weights(apart[observed], variance[observed])
        observations = Observations(time_s, unrolled + apart, variance / weight, observed)
        noise = noise or fit_noise(observations)
        smoothed = smooth(observations, noise)
        path = path @ rotation_matrices(smoothed.position - unrolled)
    assert noise is not None
    return SmoothedRotations(path, smoothed, noise, weight)


def _unrolled(path: Floats) -> Floats:
    """Return the sum (T, 3) of the rotations from frame to frame, each in the axes of the frame before."""
    steps = rotation_vectors(path[:-1].swapaxes(1, 2) @ path[1:])
    return np.concatenate([np.zeros((1, 3)), np.cumsum(steps, 0)])


def filled(time_s: Floats, rotations: Floats, observed: NDArray[np.bool_]) -> Floats:
    """Return rotations (T, 3, 3) with each that is not observed rotated part of the way between its neighbours."""
    seen = np.flatnonzero(observed)
    after = np.searchsorted(seen, np.arange(len(observed))).clip(0, len(seen) - 1)
    before = np.where(seen[after] == np.arange(len(observed)), after, after - 1).clip(0)
    start, end = seen[before], seen[after]
    span = time_s[end] - time_s[start]
    way = np.where(span > 0, (time_s - time_s[start]) / np.where(span > 0, span, 1.0), 0.0).clip(0, 1)
    rotation = rotation_vectors(rotations[start].swapaxes(1, 2) @ rotations[end])
    result: Floats = rotations[start] @ rotation_matrices(rotation * way[:, None])
    return result
