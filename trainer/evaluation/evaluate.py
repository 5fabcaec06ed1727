"""Run, measure, calibrate and submit a checkpoint on photos with known truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from annotator.coordinates import CropFrame, axes_of_ray, camera_from_crop, camera_translation
from annotator.errors import UserError
from annotator.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from annotator.model.network import Network, Prediction
from annotator.model.two_looks import TwoLooks
from annotator.photos.cut import OUTSIDE, resample
from annotator.quality.calibration import Calibration
from annotator.render import interpolate, rasterize
from annotator.runtime.device import device_of
from annotator.storage.files import check_writable
from trainer.batch import Batch
from trainer.config import SYNTHETIC, SourceConfig
from trainer.data.cache import Cached, is_cache, measured_by
from trainer.data.features import unpacked
from trainer.data.read import Facts
from trainer.data.stream import Stored
from trainer.evaluation.calibrate import check_enough, fit_calibration, with_label_errors
from trainer.evaluation.measurements import Measured
from trainer.evaluation.results import write_results
from trainer.evaluation.submit import check_submission, write_submission

#: Seed of synthetic photos for evaluation; unlikely to be the seed of a training.
HELD_OUT_SEED = 982_451_653

#: Their default number.
SYNTHETIC_COUNT = 1000

BATCH_SIZE = 32

Progress = Callable[[int, int], None]  # photos done, total photos


def evaluate(
    checkpoint: str,
    examples: str,
    out: str,
    hand: str | None = None,
    first: int = 0,
    count: int = 0,
    device: str | None = None,
    submission: str | None = None,
    on_progress: Progress = lambda done, total: None,
    against_labels: bool = False,
) -> dict[str, Any] | None:
    """Measure a checkpoint on examples and write the results to OUT (`results.write_results`).

    Args:
        checkpoint: as `load_checkpoint` takes it.
        examples: a folder or URL that `amvur convert` wrote, `synth`, or a cache of drawn hands.
        out: a folder or URL.
        hand: as `load_checkpoint` takes it.
        first: number of the first example. count: number of examples; 0 = all (of `synth` 1,000).
        device: device to run on; default: a GPU if available.
        submission: `freihand`, `ho3d_v2` or `ho3d_v3`: also write the benchmark's files.
        on_progress: called after every batch.
        against_labels: accept predicted or fitted labels in place of truth; the figures are then agreement with them.

    Returns:
        the figures; None if no example has a target, as in a benchmark's evaluation split.

    Raises:
        UserError: an invalid argument, or missing examples.
    """
    loaded = load_checkpoint(checkpoint, hand)
    benchmark = check_submission(submission, loaded.hand) if submission else None
    if benchmark and (total := _examples(loaded, examples, first, count)[0]) != benchmark.entries:
        raise UserError(
            f"{benchmark.title} has {benchmark.entries} hands, '{examples}' has {total}: "
            "convert the whole evaluation split"
        )
    check_writable(out)
    measured = Measured(loaded.info.calibration)
    places: list[int] = []
    hands: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    targets = 0
    for batch, prediction, facts in run(loaded, examples, first, count, device, on_progress, against_labels):
        _measure(measured, loaded.network, batch, prediction, facts)
        targets += int(batch.has_joints2d.any(1).sum() + batch.has_joints3d.sum() + batch.has_vertices.sum())
        if benchmark:
            hands += zip(*before_cameras(batch, prediction, facts), strict=True)
            places += [-1 if fact.source_index is None else fact.source_index for fact in facts]
    if benchmark:
        # Examples are shuffled; a submission needs the data set's own order.
        in_order = [hands[i] for i in np.argsort(places, kind="stable")]
        joints3d, vertices, wrists = (np.stack(parts) for parts in zip(*in_order, strict=True))
        write_submission(out, benchmark, joints3d, vertices, wrists)
    if not targets:
        return None
    facts_of_run = {
        "checkpoint": loaded.id,
        "trained_steps": loaded.info.trained_steps,
        "hand": loaded.hand.id,
        "calibration": asdict(loaded.info.calibration),
        "examples": examples,
        "first": first,
    }
    return write_results(out, measured, facts_of_run)


def calibrate(
    checkpoint: str,
    examples: str | Mapping[str, int],
    out: str,
    hand: str | None = None,
    first: int = 0,
    count: int = 0,
    device: str | None = None,
    on_progress: Progress = lambda done, total: None,
    shares_label_errors: bool = False,
) -> Calibration:
    """Fit a checkpoint's calibration on held-out examples, and write the calibrated checkpoint to OUT.

    Arguments as for `evaluate`; `out` is a `.safetensors` file, which may be the checkpoint itself. `examples` may be
    several places, fitted together, with the number of examples of each (0 = all) in place of `count`.
    `shares_label_errors`: the checkpoint was trained on labels from the same source, such as fits, and repeats their
    errors; these are added by the labels' std.

    Raises:
        UserError: an invalid argument, or too few examples.
    """
    if not out.endswith(".safetensors"):
        raise UserError(f"'{out}': give the calibrated checkpoint a name that ends in .safetensors")
    loaded = load_checkpoint(checkpoint, hand)
    if loaded.info.network.variant == "prior_net":
        raise UserError(
            f"'{checkpoint}' is prior-net alone: its uncertainty is constant and cannot be calibrated"
        )
    places = {examples: count} if isinstance(examples, str) else examples
    total = sum(_examples(loaded, place, first, many)[0] for place, many in places.items())
    check_enough(total, ", ".join(places))
    check_writable(out.rpartition("/")[0] or ".")
    measured, generator = Measured(), torch.Generator().manual_seed(0)
    for place, many in places.items():
        for batch, prediction, facts in run(
            loaded, place, first, many, device, on_progress, shares_label_errors
        ):
            measured.add(
                with_label_errors(batch, generator) if shares_label_errors else batch,
                prediction,
                [fact.image_id for fact in facts],
            )
    names = [examples] if isinstance(examples, str) else [place.rpartition("/")[2] for place in places]
    fitted = fit_calibration(measured, ", ".join(names))
    save_checkpoint(replace(loaded, info=replace(loaded.info, calibration=fitted)), out)
    return fitted


@torch.inference_mode()
def run(
    checkpoint: Checkpoint,
    examples: str,
    first: int = 0,
    count: int = 0,
    device: str | None = None,
    on_progress: Progress = lambda done, total: None,
    against_labels: bool = False,
) -> Iterator[tuple[Batch, Prediction, list[Facts]]]:
    """Predict examples in order. Crops are cut as in `annotate`; left hands are mirrored to right ones.

    Batches hold the tight crop, even if the network takes wider images (`Checkpoint.cut_margin`). Around drawn hands
    the wider images show `OUTSIDE_RGB`.
    """
    place = device_of(device)
    network = checkpoint.network.to(place).eval()
    total, batches = _examples(checkpoint, examples, first, count)
    if not against_labels:
        batches = _truths(batches, examples)
    drawn_tight = examples == SYNTHETIC or is_cache(examples)
    done = 0
    for batch, facts in batches:
        batch = batch.to(place)
        shown = batch.image
        if checkpoint.cut_margin > 1 and drawn_tight:
            shown = _resized(shown, checkpoint.cut_margin, checkpoint.cut_px, OUTSIDE)
        elif checkpoint.cut_margin > 1:
            batch = _tight(batch, checkpoint.cut_margin, checkpoint.info.network.crop_px)
        images = (shown.float() / 255).contiguous(memory_format=torch.channels_last)
        if batch.features.shape[1] and isinstance(network, Network):
            prediction = network(images, None, unpacked(batch.features, images, network.backbone))
        else:
            prediction = network(images, torch.arange(len(images), device=place))
        yield batch, prediction, facts
        done += len(batch)
        on_progress(done, total)


def _examples(
    checkpoint: Checkpoint, examples: str, first: int, count: int
) -> tuple[int, Iterator[tuple[Batch, list[Facts]]]]:
    """Return the number of examples, and their batches; stored ones are as wide as the network's input.

    Those of a cache have its features, if they come from the checkpoint's own backbone.
    """
    if is_cache(examples):
        config = SourceConfig(source=examples, first=first, count=count)
        network = checkpoint.network
        features = isinstance(network, Network) and measured_by(examples, network.backbone)
        cached = Cached(examples, checkpoint.hand, config, seed=0, features=features)
        return len(cached), cached.in_order(BATCH_SIZE)
    if examples != SYNTHETIC:
        config = SourceConfig(source=examples, first=first, count=count)
        stored = Stored(
            examples, checkpoint.hand, checkpoint.cut_px, config, seed=0, margin=checkpoint.cut_margin
        )
        return len(stored), stored.in_order(BATCH_SIZE)
    total = count or SYNTHETIC_COUNT
    return total, _drawn(checkpoint, checkpoint.info.network.crop_px, range(first, first + total))


def _tight(batch: Batch, margin: float, size_px: int) -> Batch:
    """Cut examples that are `margin` times as wide as the crop (B, 3, S, S) down to the crop itself."""
    return replace(
        batch,
        image=_resized(batch.image, 1 / margin, size_px, OUTSIDE),
        hand_mask=_resized(batch.hand_mask, 1 / margin, size_px, (0.0,)),
        joints2d=batch.joints2d * margin,
        joints2d_std=batch.joints2d_std * margin,
        half_side_tan=batch.half_side_tan / margin,
    )


def _resized(images: Tensor, times: float, size_px: int, outside: Sequence[float]) -> Tensor:
    """Resample uint8 images (B, C, S, S) to squares (B, C, size_px, size_px) about their centres, `times` as wide."""
    centre = torch.zeros(len(images), 2, device=images.device)
    turn_rad = centre[:, 0]
    found = resample(
        images.float() / 255, centre, turn_rad + times, turn_rad, turn_rad.bool(), size_px, outside
    )
    return (found * 255).round().byte()


def _truths(
    batches: Iterator[tuple[Batch, list[Facts]]], examples: str
) -> Iterator[tuple[Batch, list[Facts]]]:
    """Yield the batches.

    Raises:
        UserError: the 3D of the examples is predicted: a network must not be evaluated on predictions.
    """
    for batch, facts in batches:
        if batch.vertices_std_mm.any() or batch.joints3d_std_mm.any():
            raise UserError(
                f"'{examples}' holds predicted labels with std, which can't serve as truth: "
                "give examples with known truth, or 'synth'"
            )
        yield batch, facts


def _drawn(checkpoint: Checkpoint, crop_px: int, numbers: range) -> Iterator[tuple[Batch, list[Facts]]]:
    from trainer.synth import SyntheticHands

    hands = SyntheticHands(checkpoint.hand, crop_px, HELD_OUT_SEED)
    whole = CropFrame(np.full(2, crop_px / 2), np.float64(crop_px / 2), np.bool_(False))
    for start in range(0, len(numbers), BATCH_SIZE):
        part = numbers[start : start + BATCH_SIZE]
        facts = [Facts(f"synth-{number}", whole, number, None, None) for number in part]
        yield hands.batch(torch.tensor(part)), facts


def _measure(
    measured: Measured, network: Network | TwoLooks, batch: Batch, prediction: Prediction, facts: list[Facts]
) -> None:
    rendered: Tensor | None = None
    region: Tensor | None = None
    if prediction.rgb is not None:
        points = prediction.camera.project(prediction.vertices.mean_mm)
        fragments = rasterize(points, network.faces, batch.image.shape[-1])
        rendered = interpolate(fragments, prediction.rgb, network.faces).permute(0, 3, 1, 2)
        region = (fragments.face_ids >= 0) & (batch.hand_mask[:, 0] > 127)
    measured.add(batch, prediction, [fact.image_id for fact in facts], rendered, region)


def before_cameras(
    batch: Batch, prediction: Prediction, facts: list[Facts]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return wrist-relative joints (B, 21, 3) and vertices (B, V, 3), and wrists (B, 3), in camera axes, mm.

    Predictions are in crop axes. Wrists come from the data set, else from a fit to 2D and 3D joints.

    Raises:
        UserError: an example has neither a wrist nor a camera.
    """
    axes = axes_of_ray(batch.ray)
    joints3d_mm, vertices_mm = (
        camera_from_crop(points.mean_mm, axes).cpu().numpy()
        for points in (prediction.joints3d, prediction.vertices)
    )
    joints2d = prediction.joints2d.cpu().numpy()
    wrists = []
    for fact, points_mm, points in zip(facts, joints3d_mm, joints2d, strict=True):
        if fact.wrist_mm is not None:
            wrists.append(fact.wrist_mm)
            continue
        if fact.camera_matrix is None:
            raise UserError(
                f"'{fact.image_id}' has no camera_matrix, which a submission needs: convert the "
                "benchmark's evaluation split"
            )
        matrix = fact.camera_matrix
        translation = camera_translation(
            points_mm[None],
            fact.frame.photo_from_crop(points)[None],
            matrix[:1, 0],
            matrix[None, :2, 2],
        )
        wrists.append(translation[0])
    return joints3d_mm, vertices_mm, np.stack(wrists)
