"""Train a landmark network to read smaller crops: its outputs at 160 px follow MediaPipe's at 224 px. Not in the paper.

Any crop around a hand will do, and no label is needed. The teacher sees each crop once, upright and tight, as it was
trained. The student learns to read the same hand in views that are rotated, zoomed, shifted and coloured by chance,
because a first look errs. The crops are of right hands, fingers up. On synthetic hands it learns the true landmarks
instead, also where the teacher is wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from annotator.model.landmarker.network import Landmarker, LandmarkHand
from annotator.model.quantised import quantised_convolutions, round_to_grid
from annotator.storage.files import write_atomic
from trainer.distillation.config import DistilConfig
from trainer.distillation.examples import LandmarkExamples, shrunk, view
from trainer.distillation.training_loop import train_with_running_mean
from trainer.keyed_random import keys

#: Crop half-sides: joints of synthetic hands differ from MediaPipe's landmarks in definition by up to this; x and y, z.
TOLERANCE = (0.03, 0.03, 0.06)

#: The running mean of the student's weights, in the folder of a run.
MODEL_FILE = "landmarker.safetensors"


def landmark_loss(student: LandmarkHand, target: LandmarkHand, drawn: Tensor) -> Tensor:
    """Return how far each hand (B,) of the student is from its target; every part is of about the same size.

    Landmarks count by the target's presence: on a crop without a hand they mean nothing. Those of synthetic hands count
    beyond TOLERANCE; their world landmarks do not count.
    """
    tolerance = student.image.new_tensor(TOLERANCE) * drawn[:, None, None]
    off = ((student.image - target.image).abs() - tolerance).clamp_min(0) / 0.02
    image = F.smooth_l1_loss(off, torch.zeros_like(off), reduction="none").mean((1, 2))
    world = F.smooth_l1_loss(student.world_mm / 3, target.world_mm / 3, reduction="none").mean((1, 2))
    of_logits = sum(
        F.binary_cross_entropy_with_logits(ours, theirs.sigmoid(), reduction="none")
        for ours, theirs in ((student.presence, target.presence), (student.is_right, target.is_right))
    )
    return target.presence.sigmoid() * (image + world * ~drawn) + of_logits


def distil(
    student: Landmarker,
    crops: LandmarkExamples,
    margin: float,
    out: Path,
    config: DistilConfig,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Landmarker:
    """Train `student` and return the running mean of its weights; OUT keeps the run, which resumes there.

    Args:
        student: MediaPipe's network, or one that an earlier run has trained; its batch norms keep their statistics.
        crops: of photos and synthetic hands, in any order.
        margin: side of the crops, over that of tight ones.
        out: a folder.
        config: the run's settings.
        on_step: called after each step with its number and mean loss.
    """
    if config.eight_bit:
        student = _with_rounded_weights(student)

    def loss(network: nn.Module, step: int) -> Tensor:
        part = crops.rows(_rows_of_step(step, len(crops.image), config))
        images, target = view(part, keys(config.seed, config.numbers(step)), margin, config)
        return landmark_loss(network(shrunk(images, config.crop_px)), target, part.drawn).mean()

    def result(mean: Landmarker) -> Landmarker:
        return _with_plain_weights(mean) if config.eight_bit else mean

    def save(mean: Landmarker) -> None:
        write_atomic(str(out / MODEL_FILE), safetensors.torch.save(result(mean).state_dict()))

    return result(train_with_running_mean(student, loss, out, config, save, on_step)).eval()


class _Grid(nn.Module):
    """Round weights in each forward pass."""

    def forward(self, weight: Tensor) -> Tensor:
        return round_to_grid(weight)


def _with_rounded_weights(landmarker: Landmarker) -> Landmarker:
    """Return the network with folded batch norms, and weights that are rounded to the grid at each use."""
    folded = copy.deepcopy(landmarker)
    folded.backbone.fold_normalisation()
    for convolution in quantised_convolutions(folded.backbone).values():
        parametrize.register_parametrization(convolution, "weight", _Grid())
    return folded.requires_grad_(True)


def _with_plain_weights(folded: Landmarker) -> Landmarker:
    """Return the same network as a plain one, whose weights are on the grid."""
    plain = Landmarker()
    plain.backbone.take_folded(folded.backbone)
    plain.heads.load_state_dict(folded.heads.state_dict())
    return plain


def _rows_of_step(step: int, count: int, config: DistilConfig) -> Tensor:
    """Return the rows of a step among `count` crops; each epoch has its own order, which follows from the seed."""
    numbers = config.numbers(step)
    order = torch.randperm(
        count, generator=torch.Generator().manual_seed(config.seed + int(numbers[0]) // count)
    )
    return order[numbers % count]
