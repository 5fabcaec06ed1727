"""Labels that are rotated the wrong way weigh less than others of their track.

A network sometimes confuses palm and back, and so rotates a hand by up to 180 degrees for a few frames. Gaussian
errors would drag the path around with them. So a label is rotated either by a Gaussian error or by any rotation, all
equally likely. Its weight is the probability of the first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotator.coordinates import rotation_matrices, rotation_vectors

Floats = NDArray[np.floating]

#: Density of a uniformly random rotation, per cubed radian; first and maximum share of labels that are rotated so.
_ANY, _FIRST_SHARE, _MAX_SHARE = 1 / (8 * np.pi**2), 0.1, 0.5

#: Minimum weight, so that a track of doubtful labels alone still follows them.
MIN_WEIGHT = 0.01

#: Labels on each side, and the standard deviation in time, of a local median: more than a short run of wrong labels.
_REACH, _NEAR_S = 10, 0.15

#: Labels from one to the next whose rotation gives a rate.
_SPAN = 2

#: Rotations of one step: bounds memory.
_BLOCK = 256

#: Steps of the iterations for a scale and for a median; minimum chordal distance in the latter, two degrees.
_STEPS, _MIN_DISTANCE = 10, 0.05

#: Minimum scale, in units of the variance: a path through all labels leaves only rounding.
_MIN_SCALE = 1e-12

#: Median squared length of three standard normal numbers.
_MEDIAN_SQUARE = 2.366


def rotation_weights(apart: Floats, variance: Floats) -> Floats:
    """Return the weight (n,) of labels, by which their variance is to be divided: `MIN_WEIGHT` to 1.

    The scale of Gaussian errors and the share of wrong rotations are the likeliest, found by expectation maximisation.

    Args:
        apart: (n, 3) rotations from a path to the labels, radians. variance: (n,) predicted, up to a common factor.
    """
    square = np.square(apart).sum(1) / variance
    scale, share = max(float(np.median(square)) / _MEDIAN_SQUARE, _MIN_SCALE), _FIRST_SHARE
    for _ in range(_STEPS):
        right = _inlier_probability(square, scale, variance, share)
        total = max(float(right.sum()), 1e-9)
        scale = max(float(right @ square) / (3 * total), _MIN_SCALE)
        share = min(1 - total / len(right), _MAX_SHARE)
    return np.maximum(_inlier_probability(square, scale, variance, share), MIN_WEIGHT)


def _inlier_probability(square: Floats, scale: float, variance: Floats, share: float) -> Floats:
    gaussian = (1 - share) * np.exp(-square / scale / 2) / (2 * np.pi * scale * variance) ** 1.5
    probability: Floats = gaussian / (gaussian + share * _ANY)
    return probability


def local_medians(time_s: Floats, rotations: Floats) -> Floats:
    """Return the median (n, 3, 3) of the rotations near each one in time, all carried to its time.

    They are carried at the median rate of rotation, so that hands may rotate fast. The median of rotations has the
    least sum of chordal distances to them, by Weiszfeld's algorithm (Hartley et al., 2011). So it stays near most of
    them, however far off the others are.
    """
    result = np.empty_like(rotations)
    for start in range(0, len(rotations), _BLOCK):
        before = min(start, _REACH)
        part = slice(start - before, start + _BLOCK + _REACH + _SPAN)
        result[start : start + _BLOCK] = _medians(time_s[part], rotations[part])[before:][:_BLOCK]
    return result


def _medians(time_s: Floats, rotations: Floats) -> Floats:
    count, reach = len(rotations), min(_REACH, len(rotations) - 1)
    rate = _median_rates(time_s, rotations)
    median: Floats | None = None  # at first, the mean
    for _ in range(_STEPS):
        total = np.zeros_like(rotations)
        for shift in range(-reach, reach + 1):
            here = slice(max(-shift, 0), count - max(shift, 0))
            there = slice(max(shift, 0), count - max(-shift, 0))
            away_s = (time_s[there] - time_s[here])[:, None]
            carried = rotations[there] @ rotation_matrices(-away_s * rate[here])
            weight = np.exp(-0.5 * np.square(away_s / _NEAR_S))[:, 0]
            if median is not None:
                distance = np.linalg.norm(carried - median[here], axis=(1, 2))
                weight = weight / np.maximum(distance, _MIN_DISTANCE)
            total[here] += weight[:, None, None] * carried
        median = _nearest_rotations(total)
    assert median is not None
    return median


def _median_rates(time_s: Floats, rotations: Floats) -> Floats:
    """Return the median (n, 3) of the rates of rotation near each rotation, radians per second in its own axes."""
    if len(rotations) <= _SPAN:
        return np.zeros((len(rotations), 3))
    rotation = rotation_vectors(rotations[:-_SPAN].swapaxes(1, 2) @ rotations[_SPAN:])
    rate = rotation / (time_s[_SPAN:] - time_s[:-_SPAN])[:, None]
    padded = np.pad(rate, [(_REACH, _REACH + _SPAN), (0, 0)], constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _REACH + 1, axis=0)
    medians: Floats = np.nanmedian(windows, axis=-1)
    return medians


def _nearest_rotations(matrices: Floats) -> Floats:
    """Return the rotations (n, 3, 3) with the least squared distance from matrices."""
    left, _, right = np.linalg.svd(matrices)
    left[:, :, 2] *= np.linalg.det(left @ right)[:, None]
    rotations: Floats = left @ right
    return rotations
