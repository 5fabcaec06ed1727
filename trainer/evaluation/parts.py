"""Measure a checkpoint on examples in parts, in this process or as Ray tasks.

The split does not depend on the workers, and neither do the measurements: a part's random numbers are its own, and
batches start at the same examples. Processes with other numbers of threads round differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from annotator.model.checkpoint import Checkpoint
from annotator.model.network import Network, Prediction
from annotator.model.two_looks import TwoLooks
from annotator.quality.calibration import Calibration
from annotator.render import interpolate, rasterize
from annotator.runtime.ordered_tasks import in_order, ray_for_tasks
from trainer.batch import Batch
from trainer.evaluation.measurements import PhotoErrors
from trainer.evaluation.predictions import (
    BATCH_SIZE,
    Examples,
    OnProgress,
    predicted,
    to_camera_axes,
)

#: Examples per part: some seconds of a core.
EXAMPLES_AT_ONCE = 4 * BATCH_SIZE


@dataclass(frozen=True)
class MeasurementSettings:
    """The settings of a measurement; pickled to other processes.

    `calibration` applies to std. With `textured`, painted hands are compared with photos. With `for_submission`,
    parts hold hands in camera axes. `label_errors`: see `with_label_errors`.
    """

    calibration: Calibration
    device: str | None = None
    against_labels: bool = False
    textured: bool = False
    for_submission: bool = False
    label_errors: bool = False


@dataclass
class PartResult:
    """Measurements of some examples."""

    errors: PhotoErrors
    targets: int  # known targets
    #: Of a submission: wrist-relative joints, vertices and wrists in camera axes, mm, and the data set's own number.
    hands: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    source_indices: list[int]

    @classmethod
    def empty(cls, calibration: Calibration | None = None, seed: int = 0) -> PartResult:
        """Return a part without examples; `seed` is as for `PhotoErrors`."""
        return cls(PhotoErrors(calibration, seed), 0, [], [])

    def extend(self, other: PartResult) -> None:
        """Add the measurements of the examples that follow."""
        self.errors.extend(other.errors)
        self.targets += other.targets
        self.hands += other.hands
        self.source_indices += other.source_indices


def measured_parts(
    checkpoint: Checkpoint,
    examples: Examples,
    measurement: MeasurementSettings,
    workers: int | None = None,
    address: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Iterator[PartResult]:
    """Measure examples and yield the parts in order.

    Args:
        workers: maximum of Ray tasks at once; default this process, with an address all cores or GPUs.
        address: a Ray cluster, as for `annotator.runtime.ray_session.connected`.
        on_progress: called with the numbers of measured and of all examples.

    Raises:
        UserError: an example or a prediction is unfit, or processes died too often.
    """
    total = len(examples)
    rows = [range(start, min(start + EXAMPLES_AT_ONCE, total)) for start in range(0, total, EXAMPLES_AT_ONCE)]
    shared = checkpoint, examples, measurement
    if address is None and (workers or 1) == 1:
        for some in rows:
            yield measure_part(shared, some, lambda done: on_progress(done, total))
        return
    with ray_for_tasks(True, examples.places, address):
        gpus = 0 if measurement.device == "cpu" else 1
        parts = in_order(measure_part, shared, [(some,) for some in rows], True, workers, gpus)
        for some, part in zip(rows, parts, strict=True):
            on_progress(some.stop, total)
            yield part


def measure_part(
    shared: tuple[Checkpoint, Examples, MeasurementSettings],
    rows: range,
    on_batch: Callable[[int], None] = lambda done: None,
) -> PartResult:
    """Measure the examples at these indices; `on_batch` is called with the index of the next one after each batch."""
    checkpoint, examples, measurement = shared
    part = PartResult.empty(measurement.calibration, seed=rows.start)
    generator = torch.Generator().manual_seed(rows.start)
    done = rows.start
    for batch, prediction, facts in predicted(
        checkpoint, examples, measurement.device, rows, measurement.against_labels
    ):
        if measurement.label_errors:
            batch = with_label_errors(batch, generator)
        painted = _painted(checkpoint.network, batch, prediction) if measurement.textured else ()
        part.errors.add(batch, prediction, [fact.image_id for fact in facts], *painted)
        part.targets += int(
            batch.has_joints2d.any(1).sum() + batch.has_joints3d.sum() + batch.has_vertices.sum()
        )
        if measurement.for_submission:
            part.hands += zip(*to_camera_axes(batch, prediction, facts), strict=True)
            part.source_indices += [-1 if fact.source_index is None else fact.source_index for fact in facts]
        done += len(batch)
        on_batch(done)
    return part


def with_label_errors(batch: Batch, generator: torch.Generator) -> Batch:
    """Return a batch whose 3D targets are moved by random errors of the size of their own std.

    A network that learnt from fits repeats their errors, so its distance from other fits is too small by their std.
    """
    joints3d_mm, vertices_mm = (
        values + std * torch.randn(values.shape, generator=generator).to(values.device)
        for values, std in (
            (batch.joints3d_mm, batch.joints3d_std_mm),
            (batch.vertices_mm, batch.vertices_std_mm),
        )
    )
    return replace(batch, joints3d_mm=joints3d_mm, vertices_mm=vertices_mm)


def _painted(
    network: Network | TwoLooks, batch: Batch, prediction: Prediction
) -> tuple[Tensor, Tensor] | tuple[()]:
    """Return the mesh drawn in its predicted colours and the visible hand; empty without colours."""
    if prediction.rgb is None:
        return ()
    points = prediction.camera.project(prediction.vertices.mean_mm)
    fragments = rasterize(points, network.faces, batch.image.shape[-1])
    drawn = interpolate(fragments, prediction.rgb, network.faces).permute(0, 3, 1, 2)
    return drawn, (fragments.face_ids >= 0) & (batch.hand_mask[:, 0] > 127)
