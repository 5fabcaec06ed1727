"""Train the weights that ship from scratch: `python tools/shipped_weights.py OUT --photos PHOTOS --model MODEL`.

PHOTOS holds the folders `sign-digits`, `hand-scenes` and `hand-photos`; MODEL is MediaPipe's hand_landmarker.task.
Photos with a wrong aspect ratio are corrected first (tools/aspect_ratio.py). The script detects hands and fits hands to
their landmarks; some people and sequences are held out. Of configs/shipped, the first three stages make `fast`; each
starts from the end of the previous one. For `default`, MODEL's landmark network is distilled to smaller crops
(tools/landmarker.py), and the first look starts from its backbone (tools/first_look.py). In the fourth stage, the
second look, heads learn from the fits. A stopped run resumes.

OUT/fast.safetensors is one look, OUT/default.safetensors two looks: they ship in annotator/weights.
OUT/NAME.json has the figures of each on synthetic and on held-out hands. OUT/held_out_detections.parquet holds the
detections of held-out hands, OUT/held_out_landmarks.parquet some of them with depth. All three go to tests/data.

`--weights default` or `fast` trains nothing: it calibrates and evaluates these weights again. Tensors do not change.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from aspect_ratio import with_true_aspect
from first_look import first_look
from held_out import is_held_out
from landmarker import MARGIN, crops_of, distil_landmarker

from annotator.commands.detect import detect
from annotator.commands.fit import fit
from annotator.config import config_folder, read_config
from annotator.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, with_first_look
from annotator.model.quantised import measure_ranges
from trainer.config import SYNTHETIC, TrainConfig
from trainer.convert.convert import convert
from trainer.convert.cut_out import outlined
from trainer.convert.photos import photo_columns
from trainer.data.examples import example_schema, is_converted, write_examples
from trainer.distillation.config import DistilConfig, FirstLookConfig
from trainer.distillation.examples import drawn_examples, shrunk, view
from trainer.evaluation.calibrate import calibrate
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.machine import machine
from trainer.evaluation.measurements import PhotoErrors
from trainer.evaluation.parts import with_label_errors
from trainer.evaluation.predictions import predict_examples
from trainer.evaluation.results import summarise
from trainer.keyed_random import keys
from trainer.launch import run_training
from trainer.progress import TrainingProgress

#: Squares without a hand, as a share of the photos with hands.
EMPTY = {"sign-digits": 0.0, "hand-scenes": 0.25}

#: Photos in front of a plain wall, from which hands can be cut out.
PLAIN = "sign-digits"

#: Collections whose fitted hands train the second look.
FITTED = ("hand-photos", "sign-digits", "hand-scenes")

#: Detections in the held-out photos.
DETECTIONS = Path(__file__).parents[1] / "tests/data/held_out_detections.parquet"

#: Synthetic hands for calibration, and the number after them for evaluation.
CALIBRATED_ON, JUDGED_ON = 1000, 500

#: Held-out fits of each collection for calibration; the others are for evaluation.
CALIBRATED_FITS = 150

#: Folders of the distilled landmark network and of the first look; photos for the ranges of int8.
LANDMARKER, FIRST_LOOK, RANGED = "landmarker", "first-look", 128

#: Landmarks of each collection in held_out_landmarks.parquet.
LANDMARKS = 100


def examples(out: Path, photos: Path, model: str) -> None:
    """Write OUT/examples/NAME for training and OUT/held_out/NAME for evaluation, for each collection."""
    for name, empty in EMPTY.items():
        found = out / "found" / name
        detect(str(photos / name / "images"), str(found), model, world_joints=True)
        for part, share in (("examples", empty), ("held_out", float(empty > 0))):
            _convert(found, out, part, name, held_out=part == "held_out", empty=share, outline=name == PLAIN)


def fitted_examples(out: Path, photos: Path, model: str) -> None:
    """Write OUT/fitted/NAME for training and OUT/fitted_held_out/NAME: photos, and hands fitted to their landmarks."""
    for name in FITTED:
        found, fits = out / "found" / name, out / "fits" / name
        detect(str(photos / name / "images"), str(found), model, world_joints=True)
        fit(str(found), str(fits))
        for part in ("fitted", "fitted_held_out"):
            _convert(fits, out, part, name, held_out=part == "fitted_held_out")


def write_landmarks(out: Path) -> None:
    """Write some held-out hands of each collection as the detector gave them, with depth."""
    columns = ["image_id", "is_right", "joints2d_px", "landmark_depth_px"]
    tables = []
    for name in FITTED:
        paths = sorted((out / "found" / name / "data").glob("*.parquet"))
        table = pa.concat_tables(pq.read_table(path, columns=[*columns, "status"]) for path in paths)
        keep = [
            status == "ok" and is_held_out(name, image_id)
            for status, image_id in zip(*(table[c].to_pylist() for c in ("status", "image_id")), strict=True)
        ]
        table = table.filter(pa.array(keep)).select(columns).replace_schema_metadata(None)
        rows = np.linspace(0, len(table) - 1, LANDMARKS).astype(int)
        tables.append(table.take(pa.array(rows)).append_column("collection", pa.array([name] * LANDMARKS)))
    pq.write_table(pa.concat_tables(tables), out / "held_out_landmarks.parquet", compression="zstd")


def write_held_out(examples_held_out: Path, out: Path) -> None:
    """Write the held-out examples without their photos: detected hands, and squares without a hand."""
    columns = ["image_id", "hand_index", "status", "width", "height", "box_xyxy", "box_source", "is_right"]
    columns += ["joints2d_px", "guess3d_mm"]
    tables = []
    for name in EMPTY:
        for path in sorted((examples_held_out / name / "data").glob("*.parquet")):
            table = pq.read_table(path, columns=columns).replace_schema_metadata(None)
            tables.append(table.append_column("collection", pa.array([name] * len(table))))
    pq.write_table(pa.concat_tables(tables), out, compression="zstd")


def read_held_out(photos: Path, out: Path) -> None:
    """Write OUT/NAME per collection: the rows of tests/data/held_out_detections.parquet, joined with their photos."""
    for name in EMPTY:
        folder = out / name
        rows = pq.read_table(DETECTIONS, filters=[("collection", "=", name)]).to_pylist()
        for row in rows:
            del row["collection"]
            row |= photo_columns(str(photos / name / "images" / row["image_id"]))
            for column in ("box_xyxy", "joints2d_px", "guess3d_mm"):
                row[column] = None if row[column] is None else np.array(row[column])
        if name == PLAIN:
            rows = [outlined(row) for row in rows]
        shutil.rmtree(folder, ignore_errors=True)
        write_examples(str(folder), rows, example_schema(1, {"hand": None}))


def _convert(
    labelled: Path, out: Path, part: str, name: str, held_out: bool, empty: float = 0.0, outline: bool = False
) -> None:
    """Write the examples OUT/PART/NAME of the held-out photos of a label set, or of all others, unless they exist."""
    if is_converted(str(out / part / name)):
        return
    labels = out / "labels" / part / name
    _keep(labelled, labels, name, held_out)
    shutil.rmtree(out / part / name, ignore_errors=True)
    convert(f"labels:{labels}", str(out / part / name), empty=empty, outline=outline)


def _keep(found: Path, labels: Path, collection: str, held_out: bool) -> None:
    """Write the label set of the held-out photos, or of all others."""
    shutil.rmtree(labels, ignore_errors=True)
    (labels / "data").mkdir(parents=True)
    shutil.copy(found / "_run.json", labels)
    for path in sorted((found / "data").glob("*.parquet")):
        table = pq.read_table(path)
        chosen = [is_held_out(collection, image_id) == held_out for image_id in table["image_id"].to_pylist()]
        if any(chosen):
            pq.write_table(table.filter(pa.array(chosen)), labels / "data" / path.name)


def train_stages(
    out: Path, photos: Path, model: str, workers: int | None, settings: Sequence[str]
) -> list[Path]:
    """Train each file of configs/shipped in turn, from the end of the previous one, and the first look before the last.

    Return the models in that order.
    """
    models: list[Path] = []
    for path in sorted((config_folder() / "shipped").glob("*.yaml")):
        config = read_config(TrainConfig, "shipped", str(path), settings)
        start = str(models[-1]) if models else ""
        if config.start_from:  # the second look
            distillation = DistilConfig(crop_px=config.network.crop_px, eight_bit=True)
            start = str(distil_landmarker(out / LANDMARKER, photos, model, distillation))
            models.append(first_look(out / FIRST_LOOK, photos, model, start, FirstLookConfig()))
        data = tuple(
            source if source.source == SYNTHETIC else replace(source, source=str(out / source.source))
            for source in config.data
        )
        run = out / path.stem

        def report(progress: TrainingProgress, stage: str = path.stem) -> None:
            if progress.step % 100 == 0:
                print(
                    f"{stage}: step {progress.step} of {progress.steps}, {progress.photos_per_s:.0f} photos/s",
                    flush=True,
                )

        run_training(replace(config, data=data, start_from=start), str(run), workers, on_progress=report)
        models.append(run / "model.safetensors")
    return models


def with_ranges(checkpoint: Checkpoint, out: Path, photos: Path, model: str) -> Checkpoint:
    """Return the checkpoint with the input ranges of its hand network's convolutions, for int8, on upright crops."""
    config = DistilConfig()
    train, _ = crops_of(out / LANDMARKER, photos, model)
    images = train[:: len(train) // RANGED]
    some = drawn_examples(images, torch.zeros(len(images), 21, 3))  # only the images count here
    views, _ = view(some, keys(4, torch.arange(len(some.image))), MARGIN, config)
    backbone = copy.deepcopy(checkpoint.network.hand_network.backbone)
    backbone.fold_normalisation()
    ranges = measure_ranges(backbone, shrunk(views, checkpoint.info.network.crop_px))
    return replace(checkpoint, info=replace(checkpoint.info, ranges=ranges))


def uncertainty_of_all(checkpoint: str, fits: Path) -> dict[str, Any]:
    """Return the uncertainty on synthetic hands and fits, none of which calibrated it; fits err by their std."""
    loaded = load_checkpoint(checkpoint)
    errors, generator = PhotoErrors(loaded.info.calibration), torch.Generator().manual_seed(1)
    places = {SYNTHETIC: (CALIBRATED_ON, JUDGED_ON)} | {str(fits / n): (CALIBRATED_FITS, 0) for n in FITTED}
    for place, (first, count) in places.items():
        for batch, prediction, facts in predict_examples(loaded, place, first, count, against_labels=True):
            errors.add(with_label_errors(batch, generator), prediction, [fact.image_id for fact in facts])
    summary = summarise(errors)
    return {name: summary[name] for name in ("photos", "uncertainty", "expected_error")}


def numbers(checkpoint: str, held_out: Path, out: Path) -> dict[str, Any]:
    """Evaluate a checkpoint on synthetic hands and on the held-out hands of each collection."""
    return {
        "machine": machine(),
        "checkpoint": load_checkpoint(checkpoint).id,
        "first": CALIBRATED_ON,
        "count": JUDGED_ON,
        SYNTHETIC: evaluate(
            checkpoint, SYNTHETIC, str(out / SYNTHETIC), first=CALIBRATED_ON, count=JUDGED_ON
        ),
        **{
            name: (evaluate(checkpoint, str(held_out / name), str(out / name)) or {})
            | {"examples": f"held_out/{name}"}
            for name in EMPTY
        },
        "all": uncertainty_of_all(checkpoint, held_out.parent / "fitted_held_out"),
        "fits": {
            name: (
                evaluate(
                    checkpoint,
                    str(held_out.parent / "fitted_held_out" / name),
                    str(out / "fits" / name),
                    first=CALIBRATED_FITS,
                    against_labels=True,
                )
                or {}
            )
            | {"examples": f"fitted_held_out/{name}"}
            for name in FITTED
        },
    }


def main() -> None:
    """Train or load the weights, then calibrate, evaluate and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", required=True, help="MediaPipe's hand_landmarker.task")
    parser.add_argument(
        "--weights", help="a trained checkpoint, such as 'default': only calibrate and evaluate it"
    )
    parser.add_argument("--workers", type=int, help="as `amvur train --workers`")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="as `amvur train --set`, in every stage"
    )
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    photos = with_true_aspect(arguments.photos, out / "photos")
    fitted_examples(out, photos, arguments.model)
    if arguments.weights:
        read_held_out(photos, out / "held_out")
        trained = {Path(arguments.weights).stem: arguments.weights}
    else:
        examples(out, photos, arguments.model)
        write_held_out(out / "held_out", out / "held_out_detections.parquet")
        write_landmarks(out)
        *_, fast, first, second = train_stages(out, photos, arguments.model, arguments.workers, arguments.set)
        joined = out / "trained.safetensors"
        both = with_first_look(load_checkpoint(str(second)), load_checkpoint(str(first)))
        save_checkpoint(with_ranges(both, out, photos, arguments.model), joined)
        trained = {"fast": str(fast), "default": str(joined)}
    for name, weights in trained.items():
        calibrated = str(out / "calibrated.safetensors")
        places = {SYNTHETIC: CALIBRATED_ON}
        if name == "default":  # it learnt from fits, and real hands are to count more than synthetic ones
            places = {SYNTHETIC: 2 * CALIBRATED_FITS} | {
                str(out / "fitted_held_out" / collection): CALIBRATED_FITS for collection in FITTED
            }
        calibrate(weights, places, calibrated, shares_label_errors=True)
        save_checkpoint(load_checkpoint(calibrated), out / f"{name}.safetensors", half=True)
        found = numbers(str(out / f"{name}.safetensors"), out / "held_out", out / "results" / name)
        (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
