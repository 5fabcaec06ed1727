"""Numbers per photo of all seeds of a run, their means, and bootstrap intervals over photos and seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from annotator.quality import metrics, uncertainty

Floats = NDArray[np.float64]

#: Draws of a bootstrap, and the share of them inside an interval.
DRAWS, LEVEL = 1000, 0.95

#: Draws for an area under a curve, which takes longer.
AUSE_DRAWS = 200

#: Points of a sparsification curve: shares of photos kept.
KEPT = tuple(k / 20 for k in range(1, 21))


def _column(name: str, photos: Mapping[str, Any]) -> Floats:
    return np.asarray(photos[name], np.float64)


def _auc(name: str, photos: Mapping[str, Any]) -> Floats:
    """Return the area under PCK of each photo; photos have equal joints, so its mean is that of all joints."""
    return np.array([metrics.auc_of_pck(errors) for errors in photos[name]])


#: Title to the value of each photo. All but errors in mm are better the larger they are.
MEASURES: dict[str, Callable[[Mapping[str, Any]], Floats]] = {
    **{
        title: partial(_column, name)
        for title, name in {
            "PA-MPJPE": "pa_mpjpe_mm",
            "PA-MPVPE": "pa_mpvpe_mm",
            "PA-AUC, vertices": "pa_vertices_auc",
            "PA-F@5": "pa_f5",
            "PA-F@15": "pa_f15",
            "MPJPE": "mpjpe_mm",
            "MPVPE": "mpvpe_mm",
            "AUC, vertices": "vertices_auc",
            "F@5": "f5",
            "F@15": "f15",
            "SSIM": "ssim",
            "PSNR": "psnr_db",
            "joint std": "joint_std_mm",
        }.items()
    },
    "PA-AUC, joints": partial(_auc, "pa_joint_errors_mm"),
    "AUC, joints": partial(_auc, "joint_errors_mm"),
}


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval."""

    mean: float
    low: float
    high: float


HOLDS, FAILS, OPEN = "holds", "does not hold", "too close"


def verdict(difference: Interval) -> str:
    """Return whether a claim holds, whose difference is positive if it does."""
    if difference.low > 0:
        return HOLDS
    return FAILS if difference.high < 0 else OPEN


class Runs:
    """The results of finished runs: OUT/runs/RUN/seed-K/results."""

    def __init__(self, folders: Mapping[str, list[Path]]) -> None:
        """Take the results folders of each finished run, one per seed."""
        self.folders = {run: paths for run, paths in folders.items() if paths}
        self.values = cache(self._values)
        self.ause = cache(self._ause)

    def __contains__(self, run: str) -> bool:
        return run in self.folders

    def _values(self, run: str, measure: str) -> Floats:
        """Return (seeds, photos); runs share the photos and their order."""
        return np.stack([MEASURES[measure](_photos(folder)) for folder in self.folders[run]])

    def figures(self, run: str) -> list[dict[str, Any]]:
        """Return the figures of each seed, as `metrics.json` holds them."""
        return [json.loads((folder / "metrics.json").read_text()) for folder in self.folders[run]]

    def interval(self, weights: Mapping[str, float], measure: str) -> Interval:
        """Return the sum of weighted means of runs, with its bootstrap interval.

        Each draw takes the same photos for all runs, which share them, and seeds of each run of their own.
        """
        random = np.random.default_rng(0)
        runs = {run: self.values(run, measure) for run in weights}
        photos = next(iter(runs.values())).shape[1]
        drawn = np.zeros(DRAWS)
        for k in range(DRAWS):
            some = random.integers(0, photos, photos)
            for run, values in runs.items():
                seeds = random.integers(0, len(values), len(values))
                drawn[k] += weights[run] * np.nanmean(values[seeds].mean(0)[some])
        mean = sum(weights[run] * float(np.nanmean(values)) for run, values in runs.items())
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(mean, float(low), float(high))

    def sparsified(self, run: str, error: str, order: str = "joint std") -> Floats:
        """Return the mean error of the first photos in an order, per share `KEPT`, relative to all: mean over seeds.

        By `joint std` the lowest std comes first; by the error itself, the order is the oracle's.
        """
        curves = []
        for rank, errors in zip(self.values(run, order), self.values(run, error), strict=True):
            means = uncertainty.mean_error_of_kept(rank, errors)
            at = [max(round(share * len(means)), 1) - 1 for share in KEPT]
            curves.append(means[at] / means[-1])
        return np.asarray(np.mean(curves, 0))

    def _ause(self, run: str, error: str) -> Interval:
        """Return the area under the sparsification error, mean over seeds, with its bootstrap interval."""
        random = np.random.default_rng(0)
        stds, errors = self.values(run, "joint std"), self.values(run, error)
        seeds, photos = errors.shape
        drawn = []
        for _ in range(AUSE_DRAWS):
            some = random.integers(0, photos, photos)
            chosen = random.integers(0, seeds, (seeds,))
            drawn.append(np.mean([_area(stds[seed][some], errors[seed][some]) for seed in chosen]))
        whole = float(np.mean([_area(std, error) for std, error in zip(stds, errors, strict=True)]))
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(whole, float(low), float(high))


def _area(std: Floats, error: Floats) -> float:
    curves = uncertainty.sparsify(std, error)
    return 0.0 if curves is None else curves.ause


@cache
def _photos(folder: Path) -> dict[str, Any]:
    table = pq.read_table(folder / "photos.parquet")
    plain = {}
    for name in table.column_names:
        if name == "image_id":
            continue
        column = table[name].combine_chunks()
        if name.startswith(("pa_joint_errors", "joint_errors")):
            plain[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, 21)
        elif column.type.num_fields == 0:
            plain[name] = column.to_numpy(zero_copy_only=False)
    return plain
