"""Teach a landmark network to read smaller crops: its outputs at 160 px follow MediaPipe's at 224 px. Not in the paper.

Any crop around a hand will do, and no label is needed. Both networks see one view of each crop, turned, zoomed, shifted
and coloured by chance; the student sees it smaller. The crops are upright: fingers up, right hands. On drawn hands the
student learns the true landmarks instead, also where the teacher is wrong.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from annotator.coordinates import plane_of, resample
from annotator.model.landmarker import JOINTS, Landmarker, LandmarkHand
from annotator.model.quantised import on_grid, quantised_convolutions
from annotator.storage.files import write_whole
from trainer.config import AugmentConfig
from trainer.keyed import Draws, keys

#: Side of the teacher's crops.
TEACHER_PX = 224

#: Crop half-sides: drawn hands' joints differ from MediaPipe's landmarks in definition by up to this much; x and y, z.
TOLERANCE = (0.03, 0.03, 0.06)

#: Logit of a drawn hand's presence and side.
SURE = 6.0

#: Gradients of all weights together are cut to this length.
CLIP_NORM = 10.0

#: Files of a run: from one it resumes, the other is the running mean of the student's weights.
STATE_FILE, MODEL_FILE = "state.safetensors", "landmarker.safetensors"


@dataclass(frozen=True)
class DistilConfig:
    """A distillation."""

    crop_px: int = 160
    batch_size: int = 32
    steps: int = 4000
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    ema: float = 0.999  # the running mean of the weights is kept
    checkpoint_every: int = 100
    # How far views are from upright, tight and centred: as far as a first look may be off.
    turn_deg: float = 30.0
    zoom: float = 1.25
    shift: float = 0.12
    seed: int = 0
    eight_bit: bool = False  # keep weights on the grid of `annotator/model/quantised.py`


class Crops(NamedTuple):
    """Upright crops of N right hands."""

    image: Tensor  # (N, S, S, 3) uint8
    landmarks: Tensor  # (N, 21, 3) true ones, crop coordinates, z relative to the wrist; NaN where unknown

    def rows(self, rows: Tensor | slice) -> Crops:
        """Return some of the crops."""
        return Crops(self.image[rows], self.landmarks[rows])

    @staticmethod
    def unlabelled(image: Tensor) -> Crops:
        """Return crops without true landmarks."""
        return Crops(image, torch.full((len(image), JOINTS, 3), torch.nan))


def view(crops: Crops, key: Tensor, margin: float, config: DistilConfig) -> tuple[Tensor, Tensor]:
    """Return views (B, 3, 224, 224) in 0..1 of crops that show `margin` times a tight crop, and their landmarks."""
    draws = Draws(key)
    turn = math.radians(config.turn_deg)
    angle = draws.uniform(low=-turn, high=turn)
    reach = math.log(config.zoom)
    zoom = draws.uniform(low=-reach, high=reach).exp() / margin
    shift = draws.uniform(2, low=-config.shift, high=config.shift) / margin
    images = crops.image.permute(0, 3, 1, 2).float() / 255
    straight = torch.zeros(len(images), dtype=torch.bool)
    images = resample(images, shift, zoom, angle, straight, TEACHER_PX)
    centre = F.pad(shift, (0, 1))[:, None]
    landmarks = (crops.landmarks - centre) @ plane_of(angle, straight) / zoom[:, None, None]
    return _coloured(images, draws, AugmentConfig()), landmarks


def _coloured(images: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """Change contrast, brightness and balance, and add noise."""
    reach = config.colour
    contrast, brightness = (draws.uniform(1, 1, 1, low=-reach, high=reach).exp() for _ in range(2))
    balance = draws.uniform(3, 1, 1, low=-reach, high=reach).exp() ** 0.3
    middle = images.mean((1, 2, 3), keepdim=True)
    images = (middle + (images - middle) * contrast) * brightness * balance
    noise = draws.uniform(1, 1, 1, high=config.noise) * draws.normal(1, *images.shape[-2:])
    return (images + noise).clamp(0, 1)


def distance(student: LandmarkHand, teacher: LandmarkHand, truth: Tensor) -> Tensor:
    """Return how far each hand (B,) of the student is from its target; every part is of about the same size.

    The target is the teacher's hand, weighted by its presence: landmarks of a crop without a hand mean nothing. Where
    true landmarks (B, 21, 3) are known, the target is these, up to TOLERANCE; world landmarks do not count there.
    """
    known = truth.isfinite().all(2).all(1)
    is_hand = teacher.presence.sigmoid() * ~known
    off = (student.image - truth.nan_to_num()).abs() - student.image.new_tensor(TOLERANCE)
    off = off.clamp_min(0) / 0.02
    true_image = known * F.smooth_l1_loss(off, torch.zeros_like(off), reduction="none").mean((1, 2))
    teacher = teacher._replace(
        presence=torch.where(known, SURE, teacher.presence),
        is_right=torch.where(known, SURE, teacher.is_right),
    )
    image = F.smooth_l1_loss(student.image / 0.02, teacher.image / 0.02, reduction="none").mean((1, 2))
    world = F.smooth_l1_loss(student.world_mm / 3, teacher.world_mm / 3, reduction="none").mean((1, 2))
    of_logits = sum(
        F.binary_cross_entropy_with_logits(ours, theirs.sigmoid(), reduction="none")
        for ours, theirs in ((student.presence, teacher.presence), (student.is_right, teacher.is_right))
    )
    return is_hand * (image + world) + true_image + of_logits


def distil(
    teacher: Landmarker,
    student: Landmarker,
    crops: Crops,
    margin: float,
    out: Path,
    config: DistilConfig,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Landmarker:
    """Train `student` and return the running mean of its weights; OUT keeps the run, which resumes there.

    Args:
        teacher: MediaPipe's network.
        student: the same, or one that an earlier run has taught; its batch norms keep their statistics.
        crops: of both kinds, in any order.
        margin: how many times a tight crop's side they show.
        out: a folder.
        config: the run's settings.
        on_step: is called after each step with its number and mean loss.
    """
    teacher, student = teacher.eval(), student.eval()
    if config.eight_bit:
        student = _gridded(student)
    mean = copy.deepcopy(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.learning_rate, weight_decay=0.0)
    start = _resume(out / STATE_FILE, student, mean, optimizer)
    for step in range(start, config.steps):
        optimizer.param_groups[0]["lr"] = _rate(step, config)
        images, truth = _views_of_step(step, crops, margin, config)
        with torch.no_grad():
            target = teacher(images)
        small = F.interpolate(images, size=config.crop_px, mode="bilinear", antialias=True)
        loss = distance(student(small), target, truth).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for old, new in zip(mean.parameters(), student.parameters(), strict=True):
                old.lerp_(new, 1 - decay)
        on_step(step + 1, float(loss.detach()))
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            _save(out / STATE_FILE, step + 1, student, mean, optimizer)
            result = _ungridded(mean) if config.eight_bit else mean
            write_whole(str(out / MODEL_FILE), safetensors.torch.save(result.state_dict()))
    return (_ungridded(mean) if config.eight_bit else mean).eval()


class _Grid(nn.Module):
    """Round weights in each forward pass."""

    def forward(self, weight: Tensor) -> Tensor:
        return on_grid(weight)


def _gridded(landmarker: Landmarker) -> Landmarker:
    """Return the network with folded batch norms, and weights that are rounded to the grid at each use."""
    folded = copy.deepcopy(landmarker)
    folded.backbone.fold_normalisation()
    for convolution in quantised_convolutions(folded.backbone).values():
        parametrize.register_parametrization(convolution, "weight", _Grid())
    return folded.requires_grad_(True)


def _ungridded(folded: Landmarker) -> Landmarker:
    """Return the same network as a plain one, whose weights are on the grid."""
    plain = Landmarker()
    plain.backbone.take_folded(folded.backbone)
    plain.heads.load_state_dict(folded.heads.state_dict())
    return plain


def _rate(step: int, config: DistilConfig) -> float:
    """Return the learning rate: a linear warm-up, then half a cosine down to a hundredth."""
    warm = min((step + 1) / config.warmup_steps, 1.0)
    return config.learning_rate * warm * (0.505 + 0.495 * math.cos(math.pi * step / config.steps))


def _views_of_step(step: int, crops: Crops, margin: float, config: DistilConfig) -> tuple[Tensor, Tensor]:
    """Return the views of a step; each epoch has its own order, and every choice follows from seed and step."""
    place = torch.arange(config.batch_size) + step * config.batch_size
    count = len(crops.image)
    epoch = int(place[0]) // count
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed + epoch))
    images, truth = view(crops.rows(order[place % count]), keys(config.seed, place), margin, config)
    return images.contiguous(memory_format=torch.channels_last), truth


def _save(
    path: Path, step: int, student: nn.Module, mean: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    tensors = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
    tensors |= {f"mean.{name}": tensor for name, tensor in mean.state_dict().items()}
    for name, parameter in student.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(str(path), safetensors.torch.save(contiguous, metadata={"step": str(step)}))


def _resume(path: Path, student: nn.Module, mean: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Take what an earlier run saved, and return how many steps it took."""
    if not path.is_file():
        return 0
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
        step = int(file.metadata()["step"])
    for prefix, module in (("student.", student), ("mean.", mean)):
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(own)
    for name, parameter in student.named_parameters():
        optimizer.state[parameter] = {
            key: tensors[f"optimizer.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
        }
    return step
