"""Measure the quality of a predicted std: its order and its size. Fit the map that calibrates it.

Order: Spearman's correlation with the error, sparsification and its area (AUSE), the error of the best part.
Size: the share of errors within a Gaussian's interval of that std (coverage), and reliability bins.
Errors and std are arrays of one shape, in one unit: one number per hand, or per coordinate where stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from annotator.quality.calibration import AxisLaws, PowerLaw

Floats = NDArray[np.floating]

#: Central intervals whose coverage is measured.
LEVELS = (0.50, 0.68, 0.95)

#: The level at which the coverage of a calibrated std is exact.
CALIBRATED_LEVEL = 0.68

#: Parts of a collection, the lowest std first, whose mean error is reported.
KEPT = (0.25, 0.50, 0.75)

#: Bounds of a fitted exponent. Below 0 a smaller std would mean a larger error: then std is useless, and a constant
#: is the best estimate.
EXPONENTS = (0.0, 3.0)

#: Pairs below which a power law can't be fitted.
MIN_PAIRS = 100


def half_width(level: float) -> float:
    """Return half the central interval of N(0, 1) with this share of the probability, e.g. 0.994 for 0.68."""
    return NormalDist().inv_cdf((1 + level) / 2)


def spearman(std: Floats, error: Floats) -> float | None:
    """Return Spearman's rank correlation of predicted std with error (n,); ties share their mean rank.

    None if it is undefined: fewer than two hands, or the same std (as of prior-net) or error for all.
    """
    if len(std) < 2:
        return None
    a, b = _ranks(std), _ranks(error)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm > 0 else None


def _ranks(values: Floats) -> Floats:
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[group]


def mean_error_of_kept(std: Floats, error: Floats) -> NDArray[np.float64]:
    """Return the mean error of the k hands with the lowest std, for k = 1..n: (n,); the last is the mean of all.

    Hands of equal std have no order: each counts as their mean, so a constant std gives a constant line.
    """
    order = np.argsort(std, kind="stable")
    ordered = np.asarray(error, np.float64)[order]
    _, group, count = np.unique(np.asarray(std)[order], return_inverse=True, return_counts=True)
    ordered = (np.bincount(group, ordered) / count)[group]
    return np.cumsum(ordered) / np.arange(1, len(ordered) + 1)


@dataclass(frozen=True)
class Sparsification:
    """Mean error by the share kept, 1/n, 2/n .. 1, relative to the mean error of all."""

    kept: NDArray[np.float64]  # (n,)
    by_std: NDArray[np.float64]  # (n,) the lowest std kept
    by_error: NDArray[np.float64]  # (n,) the oracle: the least wrong kept

    @property
    def ause(self) -> float:
        """Area under the sparsification error: mean over all shares kept of `by_std - by_error`.

        Both curves are in units of the mean error of all. 0 is the oracle's order; a random order scores
        `ause_of_chance`.
        """
        return float((self.by_std - self.by_error).mean())

    @property
    def ause_of_chance(self) -> float:
        """The AUSE of an uninformative std."""
        return float((1 - self.by_error).mean())


def sparsify(std: Floats, error: Floats) -> Sparsification | None:
    """Return the curves of (n,) hands (Ilg et al., 2018); None without hands or with no error in any."""
    if len(std) == 0 or not np.any(error):
        return None
    mean = np.mean(error, dtype=np.float64)
    kept = np.arange(1, len(std) + 1) / len(std)
    return Sparsification(
        kept, mean_error_of_kept(std, error) / mean, mean_error_of_kept(error, error) / mean
    )


def error_of_best(std: Floats, error: Floats, shares: Sequence[float] = KEPT) -> list[float]:
    """Return the mean error of the part of (n,) hands with the lowest std, per share; at least one hand is kept."""
    means = mean_error_of_kept(std, error)
    return [float(means[max(round(share * len(means)), 1) - 1]) for share in shares]


def coverage(std: Floats, error: Floats, levels: Sequence[float] = LEVELS) -> list[float] | None:
    """Return the share of coordinates whose error lies within the central interval of N(0, std^2), per level.

    Arrays have any shape. NaN errors are unknown and ignored. None if all are unknown.
    """
    known = ~np.isnan(error)
    if not known.any():
        return None
    inside = [np.abs(error[known]) <= half_width(level) * std[known] for level in levels]
    return [float(one.mean()) for one in inside]


def coverage_by_axis(
    std: Floats, error: Floats, levels: Sequence[float] = LEVELS
) -> dict[str, list[float] | None]:
    """Return `coverage` of each axis: x, y and, for 3D points, z; arrays are (..., 2) or (..., 3)."""
    axes = "xyz"[: error.shape[-1]]
    return {axis: coverage(std[..., k], error[..., k], levels) for k, axis in enumerate(axes)}


def coverage_by_hand(std: Floats, error: Floats, level: float = CALIBRATED_LEVEL) -> NDArray[np.float64]:
    """Return per hand the share of coordinates within the central interval of N(0, std^2): (n, points, axes) to (n,).

    Errors of one hand are correlated, so shares vary far more than with independent errors. NaN errors are unknown
    and ignored; a hand without known errors gives NaN.
    """
    known = ~np.isnan(error)
    inside = known & (np.abs(error) <= half_width(level) * std)
    count = known.sum((1, 2))
    return np.where(count > 0, inside.sum((1, 2)) / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class ReliabilityBins:
    """Coordinates in bins of about equal count, by predicted std."""

    std: NDArray[np.float64]  # (bins,) mean predicted std
    observed: NDArray[np.float64]  # (bins,) the same, scaled to cover 68 % of the bin's errors
    count: NDArray[np.int64]  # (bins,)


def reliability(std: Floats, error: Floats, bins: int = 10) -> ReliabilityBins:
    """Compare predicted with observed std, per coordinate (any shape).

    Equal values of std fall into one bin. Zeros and unknown errors (NaN) are ignored.
    """
    std, error = np.ravel(std).astype(np.float64), np.abs(np.ravel(error)).astype(np.float64)
    known = (std > 0) & ~np.isnan(error)
    std, error = std[known], error[known]
    parts = _equal_parts(std, bins)
    means = np.array([std[part].mean() for part in parts])
    factors = np.array([_std_that_covers(error[part] / std[part]) for part in parts])
    return ReliabilityBins(means, means * factors, np.array([part.sum() for part in parts], np.int64))


def _equal_parts(values: Floats, count: int) -> list[NDArray[np.bool_]]:
    """Return masks of the values in each of about `count` intervals with about equal counts."""
    if len(values) == 0:
        return []
    edges = np.unique(np.quantile(values, np.arange(1, count) / count))
    interval = np.searchsorted(edges, values)
    return [interval == k for k in np.unique(interval)]


def _std_that_covers(error: Floats) -> float:
    return float(np.quantile(error, CALIBRATED_LEVEL)) / half_width(CALIBRATED_LEVEL)


def fit_power_law(std: Floats, error: Floats, bins: int = 25) -> PowerLaw:
    """Fit the map `scale * std ** exponent` that makes std match the errors, per coordinate (any shape).

    The exponent is the slope of log observed std on log predicted std over bins of equal count. "Observed" is the std
    that would cover 68 % of a bin's errors. So small and large std have the same coverage. The scale then makes the
    overall coverage exactly 68 %. Errors of hands have heavy tails; the fit uses percentiles, not squares, so that
    they do not inflate it. Pairs without a std are ignored; a constant std is only scaled.

    Raises:
        ValueError: fewer than `MIN_PAIRS` pairs with a positive, finite std, or no error in them.
    """
    std, error = np.ravel(std).astype(np.float64), np.abs(np.ravel(error)).astype(np.float64)
    known = (std > 0) & np.isfinite(std) & np.isfinite(error)
    std, error = std[known], error[known]
    if len(std) < MIN_PAIRS:
        raise ValueError(
            f"{len(std)} errors with a predicted std are too few to calibrate: at least {MIN_PAIRS} are needed"
        )
    exponent = _exponent(np.log(std), error, min(bins, len(std) // 20))
    scale = _std_that_covers(error / std**exponent)
    if not scale > 0:
        raise ValueError("most errors are exactly zero: there is nothing to calibrate against")
    return PowerLaw(scale, exponent)


def _exponent(log_std: Floats, error: Floats, bins: int) -> float:
    if np.ptp(log_std) < 1e-6:
        return 1.0
    points = []
    for part in _equal_parts(log_std, bins):
        observed = _std_that_covers(error[part])
        if observed > 0:
            points.append((log_std[part].mean(), np.log(observed), part.sum()))
    x, y, weight = np.array(points).reshape(-1, 3).T
    if len(x) < 2:
        return 1.0
    x = x - np.average(x, weights=weight)
    slope = (weight * x * y).sum() / (weight * x * x).sum()
    return float(np.clip(slope, *EXPONENTS))


def fit_axis_laws(std: Floats, error: Floats) -> AxisLaws:
    """Fit `fit_power_law` to points (..., 3) in crop axes: one law for x and y, one for z.

    Raises:
        ValueError: as in `fit_power_law`, for either law.
    """
    return AxisLaws(fit_power_law(std[..., :2], error[..., :2]), fit_power_law(std[..., 2:], error[..., 2:]))


def fit_mean_error(std: Floats, error: Floats) -> PowerLaw:
    """Fit `scale * std ** exponent` to the expected error of hands (n,), from their positive std and mean errors.

    This is a quasi-Poisson regression on log std: predicted errors sum to the true ones, over all hands and weighted
    by log std. So the mean is unbiased for any distribution of errors, and no tail is assumed. A constant std is only
    scaled.

    Raises:
        ValueError: fewer than two hands, or no error in them.
    """
    std, error = np.asarray(std, np.float64), np.asarray(error, np.float64)
    if len(std) < 2 or not error.any():
        raise ValueError("no errors of hands to calibrate against")
    x = np.log(std)
    x = x - x.mean()
    exponent = 1.0
    if np.ptp(x) > 1e-6:
        exponent = float(np.clip(_mean_slope(x, error), *EXPONENTS))
    return PowerLaw(float(error.sum() / (std**exponent).sum()), exponent)


def _mean_slope(x: Floats, error: Floats, steps: int = 100) -> float:
    """Solve for b by Newton's method: weights exp(b x) and weights `error` give the same mean of x.

    The derivative of a mean under weights exp(b x) is the variance under them, so the root is unique.
    """
    goal = np.average(x, weights=error)
    slope = 0.0
    for _ in range(steps):
        weight = np.exp(slope * x)
        mean = np.average(x, weights=weight)
        step = (goal - mean) / np.average((x - mean) ** 2, weights=weight)
        slope = float(np.clip(slope + step, EXPONENTS[0] - 1, EXPONENTS[1] + 1))
        if abs(step) < 1e-12:
            break
    return slope
