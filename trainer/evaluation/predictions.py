"""Predict examples with known truth, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from annotator.coordinates import CropFrame, axes_of_ray, camera_from_crop, camera_translation
from annotator.errors import UserError
from annotator.model.checkpoint import Checkpoint
from annotator.model.network import Network, Prediction
from annotator.photos.cut import OUTSIDE, resample
from annotator.runtime.device import device_of
from trainer.batch import Batch
from trainer.config import SYNTHETIC, SourceConfig
from trainer.data.cache import CachedExamples, is_cache, measured_by
from trainer.data.features import unpacked
from trainer.data.read import Facts
from trainer.data.stored import StoredExamples

#: Seed of synthetic photos for evaluation; unlikely to be the seed of a training.
HELD_OUT_SEED = 982_451_653

#: Their default number.
SYNTHETIC_COUNT = 1000

BATCH_SIZE = 32

#: Called with the numbers of photos done and of all photos.
OnProgress = Callable[[int, int], None]


class SyntheticHeldOut:
    """Hands drawn as needed, with a seed of their own."""

    places: tuple[str, ...] = ()

    def __init__(self, checkpoint: Checkpoint, first: int, count: int) -> None:
        from trainer.synth import SyntheticHands  # not needed for photos

        self._crop_px = checkpoint.info.network.crop_px
        self._hands = SyntheticHands(checkpoint.hand, self._crop_px, HELD_OUT_SEED)
        self._numbers = range(first, first + count)

    def __len__(self) -> int:
        return len(self._numbers)

    def in_order(self, size: int, rows: range | None = None) -> Iterator[tuple[Batch, list[Facts]]]:
        """Yield hands once in batches with their facts; `rows` are their indices in the window, default all."""
        numbers = self._numbers if rows is None else self._numbers[rows.start : rows.stop]
        whole = CropFrame(np.full(2, self._crop_px / 2), np.float64(self._crop_px / 2), np.bool_(False))
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            facts = [Facts(f"synth-{number}", whole, number, None, None) for number in part]
            yield self._hands.batch(torch.tensor(part)), facts


#: Opened examples; pickled to other processes without their files.
Examples = StoredExamples | CachedExamples | SyntheticHeldOut


def open_examples(checkpoint: Checkpoint, place: str, first: int = 0, count: int = 0) -> Examples:
    """Open examples for a checkpoint; stored ones are as wide as the network's input.

    Those of a cache have its features, if they come from the checkpoint's own backbone.

    Args:
        place: a folder or URL that `amvur convert` wrote, `synth`, or a cache of synthetic hands.
        first: number of the first example. count: number of examples; 0 = all (of `synth` 1,000).

    Raises:
        UserError: there are no such examples.
    """
    config = SourceConfig(source=place, first=first, count=count)
    if is_cache(place):
        network = checkpoint.network
        features = isinstance(network, Network) and measured_by(place, network.backbone)
        return CachedExamples(place, checkpoint.hand, config, seed=0, features=features)
    if place != SYNTHETIC:
        return StoredExamples(
            place, checkpoint.hand, checkpoint.cut_px, config, seed=0, margin=checkpoint.cut_margin
        )
    return SyntheticHeldOut(checkpoint, first, count or SYNTHETIC_COUNT)


def predict_examples(
    checkpoint: Checkpoint,
    examples: str,
    first: int = 0,
    count: int = 0,
    device: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
    against_labels: bool = False,
) -> Iterator[tuple[Batch, Prediction, list[Facts]]]:
    """Predict all examples, as `predicted` does; `examples`, `first` and `count` are those of `open_examples`."""
    opened, done = open_examples(checkpoint, examples, first, count), 0
    for batch, prediction, facts in predicted(checkpoint, opened, device, against_labels=against_labels):
        yield batch, prediction, facts
        done += len(batch)
        on_progress(done, len(opened))


@torch.inference_mode()
def predicted(
    checkpoint: Checkpoint,
    examples: Examples,
    device: str | None = None,
    rows: range | None = None,
    against_labels: bool = False,
) -> Iterator[tuple[Batch, Prediction, list[Facts]]]:
    """Predict examples in order. Crops are cut as in `annotate`; left hands are mirrored to right ones.

    Batches hold the tight crop, even if the network takes wider images (`Checkpoint.cut_margin`). Around synthetic
    hands the wider images show `OUTSIDE_RGB`.

    Args:
        device: device to run on; default: a GPU if available.
        rows: indices of the examples within their window; default all.
        against_labels: accept predicted or fitted labels in place of truth.

    Raises:
        UserError: the device does not exist, or the 3D of the examples is predicted.
    """
    target = device_of(device)
    network = checkpoint.network.to(target).eval()
    for batch, facts in examples.in_order(BATCH_SIZE, rows):
        if not against_labels:
            _check_truth(batch, examples)
        batch = batch.to(target)
        shown = batch.image
        if checkpoint.cut_margin > 1 and not isinstance(examples, StoredExamples):
            shown = _resized(shown, checkpoint.cut_margin, checkpoint.cut_px, OUTSIDE)
        elif checkpoint.cut_margin > 1:
            batch = _tight(batch, checkpoint.cut_margin, checkpoint.info.network.crop_px)
        images = shown.float() / 255
        if batch.features.shape[1] and isinstance(network, Network):
            prediction = network(images, None, unpacked(batch.features, images, network.backbone))
        else:
            prediction = network(images, torch.arange(len(images), device=target))
        yield batch, prediction, facts


def _check_truth(batch: Batch, examples: Examples) -> None:
    """Check that the 3D of examples is not predicted: a network must not be evaluated on predictions.

    Raises:
        UserError: it is.
    """
    if isinstance(examples, StoredExamples) and (batch.vertices_std_mm.any() or batch.joints3d_std_mm.any()):
        raise UserError(
            f"'{examples.url}' holds predicted labels with std, which can't serve as truth: "
            "give examples with known truth, or 'synth'"
        )


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
    zero = centre[:, 0]
    found = resample(
        images.float() / 255,
        centre,
        zero + times,
        zero,
        zero.bool(),
        size_px,
        outside,
    )
    return (found * 255).round().byte()


def to_camera_axes(
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
