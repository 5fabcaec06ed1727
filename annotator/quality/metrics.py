"""Errors of hands as the benchmarks define them (FreiHAND, HO3D), and of textures.

Predicted and true hands, B hands of N points each, share one unit (millimetres everywhere in this project) and one set
of axes. Both benchmarks align joints by joints and vertices by vertices, and include the wrist in the 21 joints.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

#: Thresholds of PCK in FreiHAND and HO3D: 100 from 0 to 50 mm, both ends included.
PCK_THRESHOLDS_MM = np.linspace(0.0, 50.0, 100)

#: Thresholds of the F-score.
F_THRESHOLDS_MM = (5.0, 15.0)

#: HO3D scales a hand by the bone from the wrist to this joint: the middle finger's knuckle.
_SCALE_JOINT = 9

# SSIM's window and constants (Wang et al., 2004), for values in 0..1.
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def align(predicted: Floats, truth: Floats) -> Floats:
    """Return `predicted` (B, N, 3) after Procrustes: moved, rotated and scaled closest to `truth` (B, N, 3).

    This is the least-squares similarity without reflection (Umeyama, 1991). The benchmarks' own code allows a
    reflection. Ours does not, because confusing a hand with its mirror image is an error.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    centre = truth.mean(1, keepdims=True)
    x, y = predicted - predicted.mean(1, keepdims=True), truth - centre
    u, singular, vt = np.linalg.svd(x.transpose(0, 2, 1) @ y)
    # The weakest axis is inverted where the best orthogonal map is a reflection.
    signs = np.ones_like(singular)
    signs[:, 2] = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    spread = np.square(x).sum((1, 2))
    scale = (singular * signs).sum(1) / np.where(spread > 0, spread, 1.0)
    return scale[:, None, None] * (x @ (u * signs[:, None]) @ vt) + centre


def align_wrist_and_scale(predicted: Floats, truth: Floats) -> Floats:
    """Return HO3D's "scale-translation aligned" joints (B, 21, 3): wrist moved onto the true one, and scaled.

    As in HO3D's evaluation, the scale is not fitted. It makes the bone from the wrist to the middle finger's knuckle
    as long as the true one.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    x, y = predicted - predicted[:, :1], truth - truth[:, :1]
    length = np.linalg.norm(x[:, _SCALE_JOINT], axis=-1)
    scale = np.linalg.norm(y[:, _SCALE_JOINT], axis=-1) / np.where(length > 0, length, 1.0)
    return x * scale[:, None, None] + truth[:, :1]


def distances(predicted: Floats, truth: Floats) -> NDArray[np.float64]:
    """Return the distance of each point from its true position, (B, N)."""
    return np.linalg.norm(np.asarray(predicted, np.float64) - np.asarray(truth, np.float64), axis=-1)


def root_relative_distances(
    predicted: Floats, truth: Floats, predicted_wrist: Floats, true_wrist: Floats
) -> NDArray[np.float64]:
    """Return distances (B, N) of joints or vertices (B, N, 3) after moving the wrists (B, 3) onto each other."""
    return distances(
        np.asarray(predicted) - np.asarray(predicted_wrist)[:, None],
        np.asarray(truth) - np.asarray(true_wrist)[:, None],
    )


def mpjpe(predicted: Floats, truth: Floats) -> NDArray[np.float64]:
    """Return the mean joint error of each hand (B,), joints (B, 21, 3), relative to the wrist."""
    return root_relative_distances(predicted, truth, predicted[:, 0], truth[:, 0]).mean(1)


def pa_mpjpe(predicted: Floats, truth: Floats) -> NDArray[np.float64]:
    """Return the mean error of each hand (B,) after `align`: PA-MPJPE of joints, PA-MPVPE of vertices."""
    return distances(align(predicted, truth), truth).mean(1)


def pck(errors_mm: Floats) -> NDArray[np.float64]:
    """Return the share of errors (any shape) up to each of `PCK_THRESHOLDS_MM`: (100,)."""
    ordered = np.sort(np.ravel(errors_mm))
    return np.searchsorted(ordered, PCK_THRESHOLDS_MM, side="right") / len(ordered)


def auc_of_pck(errors_mm: Floats) -> float:
    """Return the area under the PCK curve from 0 to 50 mm, by trapezoids, relative to a perfect curve: 0..1."""
    return float(_trapezoid(pck(errors_mm)) / _trapezoid(np.ones_like(PCK_THRESHOLDS_MM)))


def auc_of_scores(scores: Floats, truth: NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve of scores (n,); None if all or none are true.

    It is the share of pairs, one true and one false, in which the true one has the higher score. Equal scores count
    half.
    """
    false = np.sort(scores[~truth])
    if not len(false) or not truth.any():
        return None
    below = [np.searchsorted(false, scores[truth], side) for side in ("left", "right")]
    return float(np.mean(below) / len(false))


def _trapezoid(heights: Floats) -> float:
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(PCK_THRESHOLDS_MM)).sum())


def f_score(
    predicted: Floats, truth: Floats, thresholds_mm: Sequence[float] = F_THRESHOLDS_MM
) -> NDArray[np.float64]:
    """Return the F-score of each mesh at each threshold, (B, thresholds), as in FreiHAND (Knapitsch et al., 2017).

    It is the harmonic mean of two shares. One is of predicted vertices (B, V, 3) within the threshold of some true
    vertex (B, W, 3), the other of true vertices near some predicted one. V and W may differ.
    """
    scores = np.zeros((len(predicted), len(thresholds_mm)))
    for scored, one, other in zip(scores, predicted, truth, strict=True):
        to_truth, to_predicted = _nearest(one, other)
        for k, threshold in enumerate(thresholds_mm):
            precision, recall = (to_truth < threshold).mean(), (to_predicted < threshold).mean()
            if precision + recall > 0:
                scored[k] = 2 * precision * recall / (precision + recall)
    return scores


def _nearest(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """Return the distance of each point of `one` (V, 3) to the nearest of `other` (W, 3), and vice versa.

    All pairs are computed in single precision around a common centre. This is accurate to a micrometre at the
    thresholds, and takes half the time.
    """
    centre = np.mean(other, axis=0, dtype=np.float64)
    x, y = (np.asarray(points - centre, np.float32) for points in (one, other))
    squared = x @ (-2 * y.T)
    squared += np.square(x).sum(1)[:, None]
    squared += np.square(y).sum(1)
    return np.sqrt(squared.min(1).clip(0)), np.sqrt(squared.min(0).clip(0))


def psnr(rendered: Floats, image: Floats, region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio of each texture in its region, decibels (B,); NaN for an empty region.

    Images (B, H, W, 3) in 0..1, `region` (B, H, W). Identical regions give infinity.
    """
    squared = np.square(np.asarray(rendered, np.float64) - np.asarray(image, np.float64)).mean(-1)
    with np.errstate(divide="ignore"):
        return -10 * np.log10(_mean_over(squared, region))


def ssim(rendered: Floats, image: Floats, region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the structural similarity (Wang et al., 2004) of each texture in its region (B,); NaN if it is empty.

    Images (B, H, W, 3) in 0..1, `region` (B, H, W). Gaussian window of 11 pixels, sigma 1.5, data range 1, per
    channel, averaged over the region. The window uses only pixels of the region: the background has no weight,
    because a rendered hand has none.
    """
    # Single precision is a thousandth of the constants above.
    x, y = np.asarray(rendered, np.float32), np.asarray(image, np.float32)
    weight = np.asarray(region, np.float32)[..., None]
    total = _windowed(weight)
    total = np.where(total > 0, total, 1.0)

    def local_mean(values: Floats) -> Floats:
        return _windowed(values * weight) / total

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x, variance_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    similarity /= (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    return _mean_over(similarity.mean(-1), region)


def _windowed(images: Floats) -> Floats:
    """Filter images (B, H, W, C) with the Gaussian window, zero beyond their edges."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    taps = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    taps = (taps / taps.sum()).astype(images.dtype)
    for axis in (1, 2):
        margin = [(0, 0)] * images.ndim
        margin[axis] = (_WINDOW // 2, _WINDOW // 2)
        padded = np.moveaxis(np.pad(images, margin), axis, 0)
        size = images.shape[axis]
        summed = padded[:size] * taps[0]
        for k in range(1, _WINDOW):
            summed += padded[k : k + size] * taps[k]
        images = np.moveaxis(summed, 0, axis)
    return images


def _mean_over(values: Floats, region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean of values (B, H, W) over each region; NaN if it is empty."""
    count = region.sum((1, 2))
    total = np.where(region, values, 0.0).sum((1, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
