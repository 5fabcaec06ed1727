"""Measure fits of synthetic hands: errors of landmarks and fits, coverage of std, and hands/s on one thread.

python benchmarks/fit.py [COUNT]
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from common import machine, print_figures

from annotator.fitting.hand_fit import Fit, HandFitter
from annotator.fitting.landmarks import Landmarks
from annotator.hand import load_hand
from annotator.quality.metrics import pa_mpjpe
from annotator.quality.uncertainty import coverage, error_of_best, spearman
from trainer.synth.landmarks import simulated_detections

#: Std of independent errors of x, y and depth, millimetres.
INDEPENDENT_MM = np.array([3.0, 3.0, 6.0])


def main(count: int) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print(machine())
    figures: dict[str, float] = {}
    hand = load_hand("open")
    fitter = HandFitter(hand)
    drawn = simulated_detections(hand, count, np.random.default_rng(7))
    truth = drawn.joints3d_mm
    noise = np.random.default_rng(8).normal(size=truth.shape) * INDEPENDENT_MM
    right = drawn.landmarks.is_right
    exact = Landmarks(truth[..., :2], truth[..., 2], right)
    noisy = Landmarks((truth + noise)[..., :2], (truth + noise)[..., 2], right)
    kinds = {
        "exact landmarks": exact,
        "independent errors, 3, 3 and 6 mm": noisy,
        "a detector's errors": drawn.landmarks,
        "a detector's errors, no depth": drawn.landmarks.without_depth(),
    }
    fitter.fit(exact[:8])
    print(
        "| landmarks | error | fit | its vertices | hands/s | within 1 std: x, y, z | Spearman | half with lower std |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, landmarks in kinds.items():
        began = time.process_time()
        fit = fitter.fit(landmarks)
        rate = count / (time.process_time() - began)
        points = np.concatenate([landmarks.joints2d_px, landmarks.depth_px[..., None]], -1)
        before = pa_mpjpe(points, truth).mean() if np.isfinite(points).all() else np.nan
        after = pa_mpjpe(fit.joints3d_mm, truth)
        vertices = pa_mpjpe(fit.vertices_mm, drawn.vertices_mm).mean()
        print(
            f"| {name} | {before:.1f} | {after.mean():.1f} | {vertices:.1f} | {rate:.0f} | "
            f"{_coverage(fit, truth)} | {_order(fit, after)} |"
        )
        figures |= {f"{name}, PA-MPJPE, mm": after.mean(), f"{name}, hands/s of one core": rate}
    print_figures(figures)


def _coverage(fit: Fit, truth: np.ndarray) -> str:
    error, std = (fit.joints3d_mm - truth)[:, 1:], fit.joints3d_std_mm[:, 1:]
    shares = [coverage(std[..., axis], error[..., axis], (0.68,)) or [np.nan] for axis in range(3)]
    return ", ".join(f"{100 * share:.0f}" for (share,) in shares)


def _order(fit: Fit, error_mm: np.ndarray) -> str:
    std = np.linalg.norm(fit.joints3d_std_mm[:, 1:], axis=-1).mean(1)
    return f"{spearman(std, error_mm):.2f} | {error_of_best(std, error_mm, [0.5])[0]:.1f}"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
