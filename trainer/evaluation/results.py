"""Summarise an evaluation: the benchmarks' metrics (`annotator/quality/metrics.py`), and how well std predicts errors.

`summarise` computes the figures from `PhotoErrors`, `write_results` writes the files. A metric without a target in any
photo is None.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.hand.model import JOINT_NAMES
from annotator.quality import metrics, uncertainty
from annotator.storage.disk_space import DiskFullError
from annotator.storage.files import join, write_atomic
from trainer.evaluation.measurements import PHOTO_COLUMNS, PhotoErrors, StdAndError
from trainer.evaluation.results_table import UNCERTAINTIES, table_text

Floats = NDArray[np.floating]

#: Reported quantiles over hands.
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def summarise(errors: PhotoErrors) -> dict[str, Any]:
    """Return all figures, ready for JSON: numbers, and None where no photo has the target.

    Raises:
        UserError: nothing was measured.
    """
    if not len(errors):
        raise UserError("there are no photos to evaluate: the data set is empty")
    root_errors = np.linalg.norm(errors["joints3d_error_mm"], axis=-1)
    aligned = errors["pa_mpjpe_mm"]
    kinds = dict(errors.std_and_errors())
    return {
        "photos": len(errors),
        "joints3d": {
            "count": _count(errors["mpjpe_mm"]),
            **_means(errors, "pa_mpjpe_mm", "mpjpe_mm", "scale_aligned_mpjpe_mm"),
            "pa_mpjpe_median_mm": _number(np.nanmedian(aligned)) if _count(aligned) else None,
            "pa_auc": _auc(errors["pa_joint_errors_mm"]),
            "auc": _auc(root_errors),
            "scale_aligned_auc": _auc(errors["scale_aligned_joint_errors_mm"]),
            "per_joint_mm": _per_joint(errors, root_errors),
        },
        "size": {"count": _count(errors["hand_length_mm"]), **_means(errors, "hand_length_mm")},
        "guess3d": {
            "count": _count(errors["guess_pa_mpjpe_mm"]),
            "pa_mpjpe_mm": _mean(errors["guess_pa_mpjpe_mm"]),
        },
        "vertices": {
            "count": _count(errors["mpvpe_mm"]),
            **_means(errors, "pa_mpvpe_mm", "mpvpe_mm", "pa_f5", "pa_f15", "f5", "f15"),
            "pa_auc": _mean(errors["pa_vertices_auc"]),
            "auc": _mean(errors["vertices_auc"]),
        },
        "joints2d": {
            "count": _count(errors["joints2d_error"]),
            "error_share_of_crop": _mean(errors["joints2d_error"]),
        },
        "texture": {"count": _count(errors["psnr_db"]), **_means(errors, "ssim", "psnr_db")},
        "side": {
            "right_taken_for_right": _share(errors["right_probability"], yes=True),
            "mirrored_taken_for_left": _share(errors["mirrored_right_probability"], yes=False),
        },
        "presence": {
            "hands_taken_for_hands": _share(errors["hand_probability"], yes=True),
            "nothing_taken_for_nothing": _share(errors["empty_hand_probability"], yes=False),
        },
        "visibility": _visibility(errors["joint_visible"], errors["joint_visible_score"]),
        "expected_error": _expected(errors),
        "uncertainty": {name: _uncertainty(kinds[name]) if name in kinds else None for name in UNCERTAINTIES},
    }


def _number(value: Any) -> float | None:
    """Return a finite float, else None, which JSON can hold."""
    return float(value) if value is not None and math.isfinite(value) else None


def _count(values: Floats) -> int:
    return int((~np.isnan(values)).sum())


def _mean(values: Floats) -> float | None:
    return _number(np.nanmean(values, dtype=np.float64)) if _count(values) else None


def _share(probability: Floats, yes: bool) -> float | None:
    known = probability[~np.isnan(probability)]
    return float(((known >= 0.5) == yes).mean()) if len(known) else None


def _visibility(truth: Floats, score: Floats) -> dict[str, float | None]:
    """Return the separation of visible and hidden joints by the score (n, 21), over the joints of known truth."""
    known = ~np.isnan(truth)
    visible, score = truth[known] > 0.5, score[known]
    return {
        "count": len(visible),
        "visible_share": _mean(visible.astype(np.float32)),
        "accuracy": _mean((visible == (score >= 0.5)).astype(np.float32)),
        "auc": metrics.auc_of_scores(score, visible),
    }


def _means(errors: PhotoErrors, *names: str) -> dict[str, float | None]:
    return {name: _mean(errors[name]) for name in names}


def _auc(errors_mm: Floats) -> float | None:
    known = errors_mm[~np.isnan(errors_mm)]
    return metrics.auc_of_pck(known) if len(known) else None


def _per_joint(errors: PhotoErrors, root_errors: Floats) -> dict[str, dict[str, float | None]]:
    aligned, std = errors["pa_joint_errors_mm"], np.linalg.norm(errors["joints3d_std_mm"], axis=-1)
    kinds = {"pa_error": aligned, "error": root_errors, "std": std}
    return {
        joint: {name: _mean(values[:, k]) for name, values in kinds.items()}
        for k, joint in enumerate(JOINT_NAMES)
    }


def _uncertainty(pairs: StdAndError) -> dict[str, Any]:
    std, error = pairs.std, pairs.error
    curves = uncertainty.sparsify(std, error)
    found: dict[str, Any] = {
        "unit": pairs.unit,
        "count": len(std),
        "mean_error": _mean(error),
        "mean_std": _mean(std),
        "spearman": uncertainty.spearman(std, error),
        "ause": curves and curves.ause,
        "ause_of_chance": curves and curves.ause_of_chance,
        "error_of_best": dict(
            zip(_percents(uncertainty.KEPT), uncertainty.error_of_best(std, error), strict=True)
        ),
    }
    if pairs.coordinates is not None:
        each_std, each_error = pairs.coordinates
        bins = uncertainty.reliability(each_std, each_error)
        known = ~np.isnan(each_error)
        found["spearman_of_coordinates"] = uncertainty.spearman(each_std[known], np.abs(each_error[known]))
        found["coverage"] = _by_level(uncertainty.coverage(each_std, each_error))
        found["axes"] = {
            axis: {"coverage": _by_level(covered), **_order(each_std[..., k], each_error[..., k])}
            for k, (axis, covered) in enumerate(uncertainty.coverage_by_axis(each_std, each_error).items())
        }
        found["coverage_of_hands"] = _spread(uncertainty.coverage_by_hand(each_std, each_error))
        found["reliability"] = {
            "std": bins.std.tolist(),
            "observed_std": bins.observed.tolist(),
            "count": bins.count.tolist(),
        }
    return found


def _by_level(covered: list[float] | None) -> dict[str, float] | None:
    return None if covered is None else dict(zip(_percents(uncertainty.LEVELS), covered, strict=True))


def _order(std: Floats, error: Floats) -> dict[str, float | None]:
    """Return how well std (n, points) orders hands by their mean absolute error along one axis."""
    known = ~np.isnan(error)
    hands = known.any(1)
    std, error = (np.nanmean(np.where(known, values, np.nan)[hands], 1) for values in (std, np.abs(error)))
    mean = _mean(error)
    best_half = uncertainty.error_of_best(std, error, [0.5])[0] if len(error) else None
    return {
        "spearman": uncertainty.spearman(std, error),
        "best_half_of_all": best_half / mean if best_half is not None and mean else None,
    }


def _spread(shares: Floats) -> dict[str, float] | None:
    """Return quantiles over hands of the share of a hand's coordinates within its 68 % interval."""
    known = shares[~np.isnan(shares)]
    if not len(known):
        return None
    return dict(zip(_percents(_QUANTILES), np.quantile(known, _QUANTILES).tolist(), strict=True))


def _expected(errors: PhotoErrors) -> dict[str, dict[str, float]] | None:
    """Return expected and true mean joint error of the hands with the lowest std, per share of hands kept.

    `amvur filter` reports the same expected error. None without a calibration of 3D joints, or without their truth.
    """
    std_mm, error_mm = errors.joint_errors()
    if not errors.calibration.measures_3d or not len(std_mm):
        return None
    expected_mm = errors.calibration.joint_error(std_mm)
    shares = (*uncertainty.KEPT, 1.0)
    pairs = zip(
        uncertainty.error_of_best(std_mm, expected_mm, shares),
        uncertainty.error_of_best(std_mm, error_mm, shares),
        strict=True,
    )
    return {
        share: {"expected_mm": expected, "found_mm": true}
        for share, (expected, true) in zip(_percents(shares), pairs, strict=True)
    }


def _percents(shares: Sequence[float]) -> list[str]:
    return [f"{share:.0%}" for share in shares]


def write_results(out: str, errors: PhotoErrors, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write OUT/metrics.json, table.txt, photos.parquet and plots/*.png, and return the figures.

    `out` is a folder or fsspec URL; `facts` (checkpoint, data set, ...) go first into `metrics.json`.

    Raises:
        UserError: nothing was measured, or the folder can't be written.
    """
    # Imported late: matplotlib takes a second to import.
    from trainer.evaluation.plots import draw_plots

    summary = {**(facts or {}), **summarise(errors)}
    files = {
        "metrics.json": json.dumps(summary, indent=1, allow_nan=False).encode() + b"\n",
        "table.txt": table_text(summary).encode(),
        "photos.parquet": _photos_file(errors),
        **{f"plots/{name}.png": png for name, png in draw_plots(errors).items()},
    }
    try:
        for name, data in files.items():
            write_atomic(join(out, name), data)
    except DiskFullError:
        raise
    except OSError as error:
        raise UserError(f"can't write the results to '{out}': {error.strerror or error}") from None
    return summary


def _photos_file(errors: PhotoErrors) -> bytes:
    columns = {"image_id": pa.array(errors.image_ids, pa.string())}
    for name in PHOTO_COLUMNS:
        columns[name] = pa.array(errors[name], pa.float32(), from_pandas=True)
    per_joint = {
        "joint_errors_mm": np.linalg.norm(errors["joints3d_error_mm"], axis=-1),
        "pa_joint_errors_mm": errors["pa_joint_errors_mm"],
        "joint_stds_mm": np.linalg.norm(errors["joints3d_std_mm"], axis=-1),
        "joint2d_errors": np.linalg.norm(errors["joints2d_errors"], axis=-1) / 2,
        "joint2d_stds": np.linalg.norm(errors["joints2d_stds"], axis=-1) / 2,
    }
    for name, values in per_joint.items():
        flat = pa.array(values.ravel().astype(np.float32), from_pandas=True)
        missing = pa.array(np.isnan(values).all(1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, 21, mask=missing)
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()
