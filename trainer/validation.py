"""Watch the error on held-out examples during a training, keep the best network, and end a run that stops improving.

OUT/validation.jsonl    step and error of each measurement
OUT/best.safetensors    the network with the smallest error

The error is that of the strongest target the run trains on: vertices (mm), else 3D joints (mm), else 2D joints (crop
half-sides). So weak training never sees 3D, not even to end a run. In 3D it is the mean of two errors, root-relative
and after Procrustes. The latter alone rises while a network learns to rotate the hand, and would end the run there.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from annotator.errors import UserError
from annotator.hand.model import HandModel
from annotator.model.checkpoint import save_checkpoint
from annotator.model.network import Network, Prediction
from annotator.quality import metrics
from annotator.runtime.device import numpy_of
from annotator.storage.files import join, read_if_exists, write_atomic
from trainer.batch import Batch
from trainer.config import SourceConfig, TrainConfig, ValidationConfig
from trainer.data.cache import CachedExamples, is_cache, measured_by
from trainer.data.features import unpacked
from trainer.data.stored import StoredExamples
from trainer.state import TrainingState, as_checkpoint

LOG_FILE, BEST_FILE = "validation.jsonl", "best.safetensors"

BATCH_SIZE = 64


def stopped_improving(measurements: list[dict[str, Any]], settings: ValidationConfig) -> int | None:
    """Return the step of the first measurement that follows enough others without a gain; None if there is none."""
    best, since = np.inf, 0
    for measured in measurements:
        gained = measured["error"] < best * (1 - settings.gain)
        since = 0 if gained else since + 1
        if since >= settings.patience:
            return int(measured["step"])
        best = measured["error"] if gained else best
    return None


class Validation:
    """The measurements of one run, resumed from its log; all workers hold those of the first."""

    def __init__(self, config: TrainConfig, hand: HandModel, out: str, step: int) -> None:
        """Open the examples and the log; measurements after `step`, where the run resumes, are repeated.

        Raises:
            UserError: the examples are missing.
        """
        self.config, self.hand, self.out = config, hand, out
        self.settings = config.validation
        lines = (read_if_exists(join(out, LOG_FILE)) or b"").decode().splitlines()
        self._measurements = [one for one in map(json.loads, lines) if one["step"] <= step]
        self._source: StoredExamples | CachedExamples | None = None

    @property
    def cools_from(self) -> int | None:
        """Return the step after which the learning rate falls, as far as is known; None without a cool-down."""
        stopped = stopped_improving(self._measurements, self.settings)
        latest = self.config.steps - self.settings.cool_down
        return (latest if stopped is None else min(stopped, latest)) if self.settings.cool_down else None

    def is_over(self, step: int) -> bool:
        """Return whether the run ends after this step, because its error stopped improving."""
        stopped = stopped_improving(self._measurements, self.settings)
        return stopped is not None and step >= stopped + self.settings.cool_down

    def is_due(self, step: int, last: bool) -> bool:
        """Return whether to measure after this step."""
        return last or step % self.settings.every == 0 or self.is_over(step)

    def measure(self, state: TrainingState) -> bool:
        """Measure and log the error of the running mean, keep the best, and return `is_over`."""
        error = _of_first_worker(self._error(state.best), state.network.R.device)
        smallest = min((measured["error"] for measured in self._measurements), default=np.inf)
        self._measurements.append({"step": state.step, "error": error})
        if not dist.is_initialized() or dist.get_rank() == 0:
            if error < smallest:
                checkpoint = as_checkpoint(state, self.config.network, self.hand)
                save_checkpoint(checkpoint, join(self.out, BEST_FILE))
            log = "".join(json.dumps(measured) + "\n" for measured in self._measurements)
            write_atomic(join(self.out, LOG_FILE), log.encode())
        return self.is_over(state.step)

    @torch.inference_mode()
    def _error(self, network: Network) -> float:
        in_training = [module for module in network.modules() if module.training]  # frozen ones are not
        network.eval()
        source = self._source = self._source or self._opened(network)
        errors = []
        for batch, _ in source.in_order(BATCH_SIZE):
            batch = batch.to(network.R.device)
            images = batch.image.float() / 255
            features = unpacked(batch.features, images, network.backbone) if batch.features.shape[1] else None
            errors.append(_errors(network(images, None, features), batch))
        for module in in_training:
            module.training = True
        known = np.concatenate(errors)
        if not len(known):
            raise UserError(
                f"'{self.settings.source}' has none of the targets that the run trains on: change validation.source"
            )
        return float(known.mean())

    def _opened(self, network: Network) -> StoredExamples | CachedExamples:
        settings = self.settings
        targets = self.config.data[0].targets
        source = SourceConfig(
            source=settings.source, targets=targets, first=settings.first, count=settings.count
        )
        if is_cache(settings.source):
            features = measured_by(settings.source, network.backbone)
            return CachedExamples(settings.source, self.hand, source, 0, features)
        return StoredExamples(settings.source, self.hand, self.config.network.crop_px, source, 0, margin=1.0)


def _of_first_worker(error: float, device: torch.device) -> float:
    """Return the first worker's error: others' batch norms may have other statistics, and all must end a run alike."""
    if not dist.is_initialized():
        return error
    shared = torch.tensor(error, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return float(shared)


def _errors(prediction: Prediction, batch: Batch) -> np.ndarray:
    """Return one error per example with a target."""
    for known, points, target in (
        (batch.has_vertices, prediction.vertices.mean_mm, batch.vertices_mm),
        (batch.has_joints3d, prediction.joints3d.mean_mm, batch.joints3d_mm),
    ):
        if known.any():
            # Both are wrist-relative already.
            predicted, truth = numpy_of(points[known]), numpy_of(target[known])
            return (metrics.distances(predicted, truth).mean(1) + metrics.pa_mpjpe(predicted, truth)) / 2
    distance = numpy_of((prediction.joints2d - batch.joints2d).norm(dim=-1))
    seen = batch.has_joints2d.cpu().numpy()
    return np.asarray((distance * seen).sum(1)[seen.any(1)] / seen.sum(1)[seen.any(1)])
