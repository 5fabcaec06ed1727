"""A Rauch-Tung-Striebel smoother for channels that move at nearly constant velocity and share their variances.

Each channel is a position that integrates a velocity, and the velocity is a random walk: over dt its variance grows by
`process * dt`. A frame measures the position with the variance `scale * variance`, where `variance` is what the frame
predicts of itself. Both factors are fitted by maximum likelihood (`fit_noise`). As covariances depend on times and
variances only, all channels of a group share them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Floats = NDArray[np.floating]

#: Prior variances at the first time: of the position, in the mean measurement variance, and of the velocity, in that
#: over the squared mean time between frames. So wide that measurements decide.
PRIOR_POSITION, PRIOR_VELOCITY = 1e6, 1e4

#: Range of the process noise for which the fit looks, as log10 of `process * dt^3 / measurement variance`.
_RATIO_LOG10 = (-7.0, 3.0)

#: Frames from which noise is fitted, at most: a longer sequence is no surer of two numbers.
FIT_FRAMES = 1500


class Noise(NamedTuple):
    """The two factors of a group."""

    process: float  # growth of the velocity's variance, units^2 / s^3
    scale: float  # of the measurement variances


@dataclass(frozen=True, eq=False)
class Track:
    """Measurements of C channels at T times."""

    time_s: Floats  # (T,) strictly increasing
    values: Floats  # (T, C); any number where not observed
    variance: Floats  # (T,) predicted, positive where observed
    observed: NDArray[np.bool_]  # (T,) at least one

    def first(self, count: int) -> Track:
        """Return the first `count` times; the first observed one is among them."""
        start = int(np.argmax(self.observed))
        rows = slice(start, start + count)
        return Track(self.time_s[rows], self.values[rows], self.variance[rows], self.observed[rows])


@dataclass(frozen=True, eq=False)
class Smoothed:
    """The posterior."""

    position: Floats  # (T, C)
    velocity: Floats  # (T, C) per second
    variance: Floats  # (T,) of each channel's position


@dataclass(frozen=True, eq=False)
class _Filtered:
    mean: Floats  # (T, 2, C) after each measurement
    covariance: Floats  # (T, 2, 2)
    predicted_mean: Floats  # (T, 2, C) before it
    predicted: Floats  # (T, 2, 2)
    misfit: float  # sum over measurements and channels of squared innovation over its variance
    log_variance: float  # sum over measurements of the log of the innovation's variance
    count: int  # measurements


def prior(track: Track, noise: Noise) -> tuple[Floats, Floats]:
    """Return mean (2, C) and covariance (2, 2) of position and velocity at the first time."""
    seen = track.observed
    mean = np.zeros((2, track.values.shape[1]))
    mean[0] = track.values[seen].mean(0)
    variance = noise.scale * float(track.variance[seen].mean())
    step_s = mean_step(track.time_s)
    return mean, np.diag([PRIOR_POSITION * variance, PRIOR_VELOCITY * variance / step_s**2])


def mean_step(time_s: Floats) -> float:
    """Return the mean time between frames; 1 where there is one frame."""
    return float(time_s[-1] - time_s[0]) / (len(time_s) - 1) if len(time_s) > 1 else 1.0


def transition(step_s: float, process: float) -> tuple[Floats, Floats]:
    """Return how position and velocity move over a time step, and the covariance (2, 2) that it adds."""
    move = np.array([[1.0, step_s], [0.0, 1.0]])
    grown = process * np.array([[step_s**3 / 3, step_s**2 / 2], [step_s**2 / 2, step_s]])
    return move, grown


def smooth(track: Track, noise: Noise) -> Smoothed:
    """Filter forwards, smooth backwards."""
    found = _filtered(track, noise)
    mean, covariance = found.mean[-1], found.covariance[-1]
    means, variances = [mean], [covariance[0, 0]]
    for k in range(len(track.time_s) - 2, -1, -1):
        move, _ = transition(track.time_s[k + 1] - track.time_s[k], noise.process)
        gain = np.linalg.solve(found.predicted[k + 1], move @ found.covariance[k]).T
        mean = found.mean[k] + gain @ (mean - found.predicted_mean[k + 1])
        covariance = found.covariance[k] + gain @ (covariance - found.predicted[k + 1]) @ gain.T
        means.append(mean)
        variances.append(covariance[0, 0])
    both = np.stack(means[::-1])
    return Smoothed(both[:, 0], both[:, 1], np.array(variances[::-1]))


def fit_noise(track: Track) -> Noise:
    """Return the factors under which the measurements are likeliest.

    For a given ratio of the two, the best scale is the mean squared innovation over its variance, so that one number
    is searched for. Fewer than four measurements say nothing of motion: the hand is taken to move as it is measured.
    """
    part = track.first(FIT_FRAMES)
    count, channels = int(part.observed.sum()), track.values.shape[1]
    unit = float(part.variance[part.observed].mean()) / mean_step(part.time_s) ** 3
    if count < 4:
        return Noise(unit, 1.0)

    def scaled(log_ratio: float) -> tuple[_Filtered, float]:
        found = _filtered(part, Noise(unit * 10**log_ratio, 1.0))
        # The prior takes two measurements of each channel.
        return found, max(found.misfit / ((count - 2) * channels), 1e-12)

    def cost(log_ratio: float) -> float:
        found, scale = scaled(log_ratio)
        return found.log_variance + (count - 2) * np.log(scale)

    best = minimize_scalar(cost, bounds=_RATIO_LOG10, method="bounded", options={"xatol": 0.02})
    _, scale = scaled(best.x)
    return Noise(unit * 10 ** float(best.x) * scale, scale)


def _filtered(track: Track, noise: Noise) -> _Filtered:
    mean, covariance = prior(track, noise)
    means, covariances, predicted_means, predicted = [], [], [], []
    misfit = log_variance = 0.0
    count = 0
    identity = np.eye(2)
    for k, seen in enumerate(track.observed):
        if k:
            move, grown = transition(track.time_s[k] - track.time_s[k - 1], noise.process)
            mean, covariance = move @ mean, move @ covariance @ move.T + grown
        predicted_means.append(mean)
        predicted.append(covariance)
        if seen:
            measured = noise.scale * track.variance[k]
            innovation = track.values[k] - mean[0]
            total = covariance[0, 0] + measured
            gain = covariance[:, 0] / total
            mean = mean + gain[:, None] * innovation
            # Joseph's form stays positive whatever the rounding.
            keep = identity - np.outer(gain, identity[0])
            covariance = keep @ covariance @ keep.T + measured * np.outer(gain, gain)
            count += 1
            if count > 2:
                misfit += float(innovation @ innovation) / total
                log_variance += float(np.log(total))
        means.append(mean)
        covariances.append(covariance)
    return _Filtered(
        *(np.stack(one) for one in (means, covariances, predicted_means, predicted)), misfit, log_variance, count
    )
