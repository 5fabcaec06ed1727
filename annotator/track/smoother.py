"""A Rauch-Tung-Striebel smoother for channels that move at nearly constant velocity and share their variances.

Each channel is a position that integrates a velocity, and the velocity is a random walk: over dt its variance grows by
`process * dt`. A frame measures the position with two errors. One is each frame's own, of variance `own * variance`,
where `variance` is the frame's own prediction. The other persists, because a network errs alike on frames that look
alike: `sqrt(lasting * variance)` times a process of unit variance that decays within `MEMORY_S`. The three factors are
fitted by maximum likelihood (`fit_noise`). Covariances depend on times and variances only, so all channels share them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.floating]

#: Prior variances at the first time: of the position, in the mean measurement variance, and of the velocity, in that
#: over the squared mean time between frames. So wide that measurements decide.
PRIOR_POSITION, PRIOR_VELOCITY = 1e6, 1e4

#: Observations below which noise is not fitted.
MIN_OBSERVED = 6

#: Maximum frames from which noise is fitted; more do not improve three numbers.
FIT_FRAMES = 600

#: Time in which the lasting error falls to 1 / e. Fitted to a sequence, it takes gestures for errors. With this value
#: errors fall on synthetic sequences (`benchmarks/video.py`); that of two or five frames gives the same result.
MEMORY_S = 0.1

#: Ranges of the fit: process noise times dt^3 over the measurement variance, and the share of the error that lasts.
_PROCESS_LOG10, _SHARE = (-9.0, 3.0), (0.001, 0.999)


class Noise(NamedTuple):
    """The factors of a group."""

    process: float  # growth of the velocity's variance, units^2 / s^3
    own: float  # of the predicted variances: the part of the error that is each frame's own
    lasting: float  # the part that lasts


@dataclass(frozen=True, eq=False)
class Observations:
    """Noisy observations of C channels at T times."""

    time_s: Floats  # (T,) strictly increasing
    values: Floats  # (T, C); any number where not observed
    variance: Floats  # (T,) predicted, positive
    observed: NDArray[np.bool_]  # (T,) at least one

    def first(self, count: int) -> Observations:
        """Return `count` times from the first observed one on, or fewer."""
        start = int(np.argmax(self.observed))
        rows = slice(start, start + count)
        return Observations(self.time_s[rows], self.values[rows], self.variance[rows], self.observed[rows])


@dataclass(frozen=True, eq=False)
class Smoothed:
    """The posterior."""

    position: Floats  # (T, C)
    velocity: Floats  # (T, C) per second
    variance: Floats  # (T,) of each channel's position


@dataclass(frozen=True, eq=False)
class Gains:
    """Filter gains per time, shared by all channels."""

    observed: NDArray[np.bool_]  # (T,)
    move: Floats  # (T, 3, 3) from the time before
    design: Floats  # (T, 3) the measurement of a state
    forward: Floats  # (T, 3) of an innovation
    total: Floats  # (T,) variance of an innovation
    covariance: Floats  # (T, 3, 3) after each measurement
    predicted: Floats  # (T, 3, 3) before it


def prior(observations: Observations, noise: Noise) -> tuple[Floats, Floats]:
    """Return mean (3, C) and covariance (3, 3) of position, velocity and lasting error at the first time."""
    seen = observations.observed
    variance = (noise.own + noise.lasting) * float(observations.variance[seen].mean())
    step_s = mean_step(observations.time_s)
    mean = prior_mean(observations.values[seen].mean(0))
    return mean, np.diag([PRIOR_POSITION * variance, PRIOR_VELOCITY * variance / step_s**2, 1.0])


def prior_mean(position: Floats) -> Floats:
    """Return the mean state (3, C) at the first time, of channels whose measurements have this mean (C,)."""
    mean = np.zeros((3, len(position)))
    mean[0] = position
    return mean


def mean_step(time_s: Floats) -> float:
    """Return the mean time between frames; 1 where there is one frame."""
    return float(time_s[-1] - time_s[0]) / (len(time_s) - 1) if len(time_s) > 1 else 1.0


def transition(step_s: float, noise: Noise) -> tuple[Floats, Floats]:
    """Return the state transition over a time step, and the covariance (3, 3) that it adds."""
    keep = np.exp(-step_s / MEMORY_S)
    move = np.array([[1.0, step_s, 0], [0, 1.0, 0], [0, 0, keep]])
    grown = np.zeros((3, 3))
    grown[:2, :2] = noise.process * np.array([[step_s**3 / 3, step_s**2 / 2], [step_s**2 / 2, step_s]])
    grown[2, 2] = 1 - keep**2
    return move, grown


def gains(observations: Observations, noise: Noise) -> Gains:
    """Return the gains of a filter; they depend on times and variances only."""
    covariance = prior(observations, noise)[1]
    size = len(observations.time_s)
    made = Gains(
        observed=observations.observed,
        move=np.empty((size, 3, 3)),
        design=np.stack([np.ones(size), np.zeros(size), np.sqrt(noise.lasting * observations.variance)], 1),
        forward=np.zeros((size, 3)),
        total=np.ones(size),
        covariance=np.empty((size, 3, 3)),
        predicted=np.empty((size, 3, 3)),
    )
    identity = np.eye(3)
    for k, seen in enumerate(observations.observed):
        if k:
            move, grown = transition(observations.time_s[k] - observations.time_s[k - 1], noise)
            covariance = move @ covariance @ move.T + grown
            made.move[k] = move
        made.predicted[k] = covariance
        if seen:
            measured, design = noise.own * observations.variance[k], made.design[k]
            across = covariance @ design
            made.total[k] = float(design @ across) + measured
            gain = made.forward[k] = across / made.total[k]
            # Joseph's form stays positive whatever the rounding.
            keep = identity - np.outer(gain, design)
            covariance = keep @ covariance @ keep.T + measured * np.outer(gain, gain)
        made.covariance[k] = covariance
    return made


def filtered(by: Gains, values: Floats, mean: Floats, first: int = 0) -> tuple[Floats, Floats]:
    """Filter some frames forwards.

    Args:
        by: of all T times.
        values: (n, C) of the times from `first` on.
        mean: (3, C) the state before them: of time `first` - 1, or the prior's for time 0.

    Returns:
        The states (n, 3, C) after each measurement, and before it.
    """
    means = np.empty((len(values), *mean.shape))
    predicted = np.empty_like(means)
    for at, k in enumerate(range(first, first + len(values))):
        if k:
            mean = by.move[k] @ mean
        predicted[at] = mean
        if by.observed[k]:
            mean = mean + by.forward[k][:, None] * (values[at] - by.design[k] @ mean)
        means[at] = mean
    return means, predicted


def smoothed_back(
    by: Gains, means: Floats, predicted: Floats, first: int, after: tuple[Floats, Floats] | None = None
) -> Floats:
    """Smooth some filtered frames backwards.

    Args:
        by: of all T times.
        means: (n, 3, C) and predicted: as of `filtered`, of the times from `first` on.
        after: the smoothed state (3, C) of the time behind them, and the predicted one; None at the end.

    Returns:
        The smoothed states (n, 3, C).
    """
    result = means.copy()
    for at in range(len(means) - 1, -1, -1):
        if after is not None:
            result[at] += _backward(by, first + at) @ (after[0] - after[1])
        after = result[at], predicted[at]
    return result


def _backward(by: Gains, k: int) -> Floats:
    """Return the gain (3, 3) of time k by the one after it."""
    gain: Floats = np.linalg.solve(by.predicted[k + 1], by.move[k + 1] @ by.covariance[k]).T
    return gain


def smooth(observations: Observations, noise: Noise) -> Smoothed:
    """Filter forwards, smooth backwards."""
    by = gains(observations, noise)
    states = smoothed_back(by, *filtered(by, observations.values, prior(observations, noise)[0]), 0)
    variance = by.covariance[:, 0, 0].copy()
    covariance = by.covariance[-1]
    for k in range(len(variance) - 2, -1, -1):
        gain = _backward(by, k)
        covariance = by.covariance[k] + gain @ (covariance - by.predicted[k + 1]) @ gain.T
        variance[k] = covariance[0, 0]
    return Smoothed(states[:, 0], states[:, 1], variance)


def fit_noise(observations: Observations) -> Noise:
    """Return the factors under which the observations are likeliest.

    For given ratios, the best size of all noise is the mean squared innovation over its variance, so that two numbers
    are searched for. Fewer than `MIN_OBSERVED` do not determine the motion: the hand then moves as it is measured.
    """
    part = observations.first(FIT_FRAMES)
    count, channels = int(part.observed.sum()), observations.values.shape[1]
    unit = float(part.variance[part.observed].mean()) / mean_step(part.time_s) ** 3
    if count < MIN_OBSERVED:
        return Noise(unit * 10 ** _PROCESS_LOG10[1], 1.0, 0.0)

    def noise_of(numbers: Floats, size: float = 1.0) -> Noise:
        process = unit * 10 ** float(np.clip(numbers[0], *_PROCESS_LOG10))
        share = float(np.clip(1 / (1 + np.exp(-numbers[1])), *_SHARE))
        return Noise(process * size, (1 - share) * size, share * size)

    def fit(noise: Noise) -> tuple[float, float]:
        """Return the best size of all noise, and the sum over measurements of the log of the innovation's variance."""
        by = gains(part, noise)
        _, predicted = filtered(by, part.values, prior(part, noise)[0])
        misfit = log_variance = 0.0
        for k in np.flatnonzero(part.observed)[2:]:  # the prior takes two measurements of each channel
            innovation = part.values[k] - by.design[k] @ predicted[k]
            misfit += float(innovation @ innovation) / by.total[k]
            log_variance += float(np.log(by.total[k]))
        return max(misfit / ((count - 2) * channels), 1e-12), log_variance

    def cost(numbers: Floats) -> float:
        size, log_variance = fit(noise_of(numbers))
        return log_variance + (count - 2) * float(np.log(size))

    simplex = np.array([[-3.0, 0.0], [-5.0, 0.0], [-3.0, 2.0]])
    options = {"initial_simplex": simplex, "xatol": 0.05, "fatol": 0.05, "maxfev": 100}
    best = minimize(cost, simplex[0], method="Nelder-Mead", options=options).x
    return noise_of(best, fit(noise_of(best))[0])
