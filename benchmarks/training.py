"""Compare trainings on this machine with their targets.

    python benchmarks/training.py OUT [overfit weak supervised]

Each takes minutes to hours, with a file in configs/benchmarks; `weak` is the users' own (configs/train). A stopped run
resumes. Results go to OUT/NAME/result.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from common import machine
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import lsqr

from annotator.config import read_config
from annotator.model.checkpoint import load_checkpoint
from annotator.render import rasterize
from trainer.config import TrainConfig
from trainer.convert.convert import convert
from trainer.data.examples import is_converted
from trainer.evaluation.calibrate import calibrate
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.predictions import predict_examples
from trainer.progress import TrainingProgress
from trainer.synth import write_photos
from trainer.train import train

#: Number of held-out photos for calibration; those for evaluation follow them.
CALIBRATED_ON, EVALUATED_ON = 1000, 1000

#: Settings of the first stage of the supervised training, over --set: small photos, for half as many more per hour, and
#: a different seed from the second stage.
SMALL = ("network.crop_px=64", "steps=2500", "optimizer.learning_rate=0.0007", "seed=1")

#: Settings of the weak training: 20 minutes on one core.
FEW = ("batch_size=8", "steps=1000", "optimizer.warmup_steps=50")


def overfit(out: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Train on 64 photos to 3 mm, with texture within 2 dB of the best per-vertex colours."""
    if not is_converted(str(out / "examples")):
        write_photos(out / "photos", 64, seed=1, size_px=160)
        convert(f"synth:{out / 'photos'}", str(out / "examples"))
    train_here(out, settings, data=str(out / "examples"))
    found = evaluated(out, str(out / "examples"), "results")
    best = best_texture_db(
        str(out / "run/model.safetensors"), str(out / "examples"), out / "photos/truth.parquet"
    )
    return {
        "PA-MPJPE, mm (target: 3 or less)": found["joints3d"]["pa_mpjpe_mm"],
        "PA-MPVPE, mm (target: 3 or less)": found["vertices"]["pa_mpvpe_mm"],
        "texture, dB": found["texture"]["psnr_db"],
        "best per-vertex colours on the true mesh, dB (target: within 2)": float(np.mean(best)),
    }


def weak(out: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Train on 2D joints alone to at most 60 % of the mean hand's error, with std that ranks errors."""
    train_here(out, [*FEW, *settings], folder="train")
    mean_hand = evaluate("untrained:default", "synth", str(out / "mean-hand"), count=EVALUATED_ON) or {}
    start = evaluate("default", "synth", str(out / "start"), count=EVALUATED_ON) or {}
    found = evaluated(out, "synth", "results", count=EVALUATED_ON)
    error, of_mean_hand, of_start = (
        figures["joints3d"]["pa_mpjpe_mm"] for figures in (found, mean_hand, start)
    )
    return {
        "PA-MPJPE, mm": error,
        "that of the shipped weights, its start, mm": of_start,
        "the mean hand's, mm": of_mean_hand,
        "ratio (target: 0.6 or less)": error / of_mean_hand,
        **uncertainty(found, spearman=0.4),
    }


def supervised(out: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Train on all labels; after calibration, std must match errors on other held-out photos."""
    train_here(out, [*settings, *SMALL], run="small")
    train_here(out, [f"start_from={out / 'small/model.safetensors'}", *settings])
    calibrated = out / "calibrated.safetensors"
    calibrate(str(out / "run/model.safetensors"), "synth", str(calibrated), count=CALIBRATED_ON)
    found = (
        evaluate(str(calibrated), "synth", str(out / "results"), first=CALIBRATED_ON, count=EVALUATED_ON)
        or {}
    )
    return {
        "PA-MPJPE, mm": found["joints3d"]["pa_mpjpe_mm"],
        "PA-MPVPE, mm": found["vertices"]["pa_mpvpe_mm"],
        **uncertainty(found, spearman=0.5),
    }


def uncertainty(found: dict[str, Any], spearman: float) -> dict[str, Any]:
    """Return the figures of 3D joints' std, root-relative and after Procrustes."""
    figures: dict[str, Any] = {}
    for name, title in (("joints3d", "root-relative"), ("joints3d_pa", "Procrustes")):
        part = found["uncertainty"][name]
        figures[f"Spearman, {title} (target: {spearman} or more)"] = part["spearman"]
        figures[f"error of best half over all, {title} (target: 0.8 or less)"] = (
            part["error_of_best"]["50%"] / part["mean_error"]
        )
    joints3d = found["uncertainty"]["joints3d"]
    figures["truth within the 68 % interval (target: 0.65 to 0.71)"] = joints3d["coverage"]["68%"]
    for axis, part in joints3d["axes"].items():
        figures[f"the same along {axis}"] = part["coverage"]["68%"]
        figures[f"Spearman of hands' std and error along {axis}"] = part["spearman"]
        figures[f"error of best half over all along {axis}"] = part["best_half_of_all"]
    return figures


def train_here(
    out: Path,
    settings: Sequence[str],
    data: str | None = None,
    run: str = "run",
    folder: str = "benchmarks",
) -> None:
    """Train configs/FOLDER/NAME.yaml in OUT/RUN, where NAME is that of OUT, with `KEY=VALUE` settings."""
    config = read_config(TrainConfig, folder, out.name, settings)
    if data:
        config = replace(config, data=(replace(config.data[0], source=data),))
    began = time.time()

    def report(progress: TrainingProgress) -> None:
        if progress.step % 100 == 0:
            left_s = (time.time() - began) / max(progress.step, 1) * (progress.steps - progress.step)
            print(
                f"{out.name}: step {progress.step} of {progress.steps}, {progress.photos_per_s:.0f} photos/s, "
                f"waiting {progress.waiting:.1%}, up to {left_s / 60:.0f} min left",
                flush=True,
            )

    train(config, str(out / run), on_progress=report)


def evaluated(out: Path, examples: str, results: str, count: int = 0) -> dict[str, Any]:
    """Evaluate the run's model."""
    return evaluate(str(out / "run/model.safetensors"), examples, str(out / results), count=count) or {}


def best_texture_db(model: str, examples: str, truth: Path) -> list[float]:
    """Return the PSNR per example under the best-fitting colours, one per vertex of the true mesh.

    The region is the true mesh within the visible hand, in `model`'s crops. `evaluate` uses the predicted mesh instead,
    which differs only by a rim where the mesh is off.
    """
    loaded = load_checkpoint(model)
    faces = torch.as_tensor(loaded.hand.faces).long()
    columns = ["image_id", "vertices_mm", "camera"]
    rows = {row["image_id"]: row for row in pq.read_table(truth, columns=columns).to_pylist()}
    found = []
    for batch, _, facts in predict_examples(loaded, examples, device="cpu"):
        for image, mask, fact in zip(batch.image, batch.hand_mask[:, 0], facts, strict=True):
            row = rows[fact.image_id]
            points = np.array(row["vertices_mm"]) + np.array(row["camera"]["cam_t_mm"])
            seen_px = (
                points[:, :2] / points[:, 2:] * row["camera"]["focal_px"] + row["camera"]["principal_px"]
            )
            xy = fact.frame.crop_from_photo(seen_px)
            screen = torch.from_numpy(np.concatenate([xy, points[:, 2:] / 1000], 1)).float()[None]
            fragments = rasterize(screen, faces, image.shape[-1])
            covered = ((fragments.face_ids[0] >= 0) & (mask > 127)).numpy()
            corners = loaded.hand.faces[fragments.face_ids[0].numpy()[covered]]
            weights = fragments.barycentrics[0].numpy()[covered]
            points_at = np.repeat(np.arange(len(corners)), 3)
            design = csr_matrix(
                (weights.ravel(), (points_at, corners.ravel())), (len(corners), points.shape[0])
            )
            colours = image.permute(1, 2, 0).numpy()[covered] / 255
            fitted = np.stack([design @ lsqr(design, colours[:, c], damp=1e-3)[0] for c in range(3)], 1)
            found.append(float(-10 * np.log10(np.square(fitted.clip(0, 1) - colours).mean())))
    return found


RUNS: dict[str, Callable[[Path, Sequence[str]], dict[str, Any]]] = {
    "overfit": overfit,
    "weak": weak,
    "supervised": supervised,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("which", nargs="*", default=list(RUNS), metavar="WHICH", help=", ".join(RUNS))
    parser.add_argument("--threads", type=int, default=0, help="torch threads; default: all cores")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="as `amvur train --set`"
    )
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for name in arguments.which:
        result: dict[str, Any] = {"machine": machine(), "changed": " ".join(arguments.set) or "nothing"}
        result |= RUNS[name](arguments.out / name, arguments.set)
        (arguments.out / name / "result.json").write_text(json.dumps(result, indent=1))
        for label, value in result.items():
            print(f"{name:<10}  {label:<70}  {value if isinstance(value, str) else f'{value:.3f}'}")


if __name__ == "__main__":
    main()
