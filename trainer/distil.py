"""Teach a landmark network to read smaller crops: its outputs at 160 px follow MediaPipe's at 224 px. Not in the paper.

Any crop around a hand will do, and no label is needed. The teacher sees each crop once, upright and tight, as it was
trained. The student learns to read the same hand in views that are turned, zoomed, shifted and coloured by chance,
because a first look errs. The crops are of right hands, fingers up. On drawn hands it learns the true landmarks
instead, also where the teacher is wrong.
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
from annotator.model.landmarker import Landmarker, LandmarkHand
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

#: Weight decay of the read-outs of side and presence, which are fitted at the end.
READ_OUT_DECAY = 1e-4

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
    turn_deg: float = 40.0
    zoom: float = 1.4
    shift: float = 0.2
    seed: int = 0
    eight_bit: bool = False  # keep weights on the grid of `annotator/model/quantised.py`


class Crops(NamedTuple):
    """Upright crops of N right hands, or views of them, and the target of a network for each."""

    image: Tensor  # (N, S, S, 3) uint8
    target: LandmarkHand  # in the coordinates of the crops; world landmarks of drawn hands are 0
    drawn: Tensor  # (N,) bool: the target is the truth, up to TOLERANCE

    def rows(self, rows: Tensor | slice) -> Crops:
        """Return some of the crops."""
        return Crops(self.image[rows], self.target.rows(rows), self.drawn[rows])

    def joined(self, other: Crops) -> Crops:
        """Return the crops of both."""
        target = LandmarkHand(*(torch.cat(pair) for pair in zip(self.target, other.target, strict=True)))
        return Crops(torch.cat([self.image, other.image]), target, torch.cat([self.drawn, other.drawn]))


@torch.no_grad()
def read_by(teacher: Landmarker, images: Tensor, margin: float) -> Crops:
    """Return crops (N, S, S, 3) uint8 of photos with the teacher's hands: it sees each upright, tight and unchanged."""
    hands = []
    for part in images.split(32):
        count = len(part)
        still = torch.zeros(count), torch.full((count,), 1 / margin), torch.zeros(count, 2)
        hands.append(teacher.eval()(_cut(part, *still)))
    target = LandmarkHand(*(torch.cat(values) for values in zip(*hands, strict=True)))
    target = target._replace(image=target.image / margin)
    return Crops(images, target, torch.zeros(len(images), dtype=torch.bool))


def drawn_hands(images: Tensor, landmarks: Tensor) -> Crops:
    """Return crops (N, S, S, 3) uint8 of drawn hands with their true landmarks (N, 21, 3), crop coordinates."""
    sure = torch.full((len(images),), SURE)
    target = LandmarkHand(landmarks, torch.zeros_like(landmarks), sure, sure)
    return Crops(images, target, torch.ones(len(images), dtype=torch.bool))


def view(crops: Crops, key: Tensor, margin: float, config: DistilConfig) -> tuple[Tensor, LandmarkHand]:
    """Return views (B, 3, 224, 224) in 0..1 of crops that show `margin` times a tight crop, and their targets."""
    draws = Draws(key)
    turn = math.radians(config.turn_deg)
    angle = draws.uniform(low=-turn, high=turn)
    reach = math.log(config.zoom)
    zoom = draws.uniform(low=-reach, high=reach).exp() / margin
    shift = draws.uniform(2, low=-config.shift, high=config.shift) / margin
    images = _coloured(_cut(crops.image, angle, zoom, shift), draws, AugmentConfig())
    plane = plane_of(angle, torch.zeros_like(angle, dtype=torch.bool))
    image = (crops.target.image - F.pad(shift, (0, 1))[:, None]) @ plane / zoom[:, None, None]
    return images, crops.target._replace(image=image, world_mm=crops.target.world_mm @ plane)


def _cut(crops: Tensor, angle: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    """Return the squares (B, 3, 224, 224) in 0..1 of crops (B, S, S, 3) uint8, in their coordinates."""
    images = crops.permute(0, 3, 1, 2).float() / 255
    return resample(images, shift, zoom, angle, torch.zeros_like(angle, dtype=torch.bool), TEACHER_PX)


def _coloured(images: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """Change contrast, brightness and balance, and add noise."""
    reach = config.colour
    contrast, brightness = (draws.uniform(1, 1, 1, low=-reach, high=reach).exp() for _ in range(2))
    balance = draws.uniform(3, 1, 1, low=-reach, high=reach).exp() ** 0.3
    middle = images.mean((1, 2, 3), keepdim=True)
    images = (middle + (images - middle) * contrast) * brightness * balance
    noise = draws.uniform(1, 1, 1, high=config.noise) * draws.normal(1, *images.shape[-2:])
    return (images + noise).clamp(0, 1)


def distance(student: LandmarkHand, target: LandmarkHand, drawn: Tensor) -> Tensor:
    """Return how far each hand (B,) of the student is from its target; every part is of about the same size.

    Landmarks count by the target's presence: on a crop without a hand they mean nothing. Those of drawn hands count
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
    crops: Crops,
    margin: float,
    out: Path,
    config: DistilConfig,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Landmarker:
    """Train `student` and return the running mean of its weights; OUT keeps the run, which resumes there.

    Args:
        student: MediaPipe's network, or one that an earlier run has taught; its batch norms keep their statistics.
        crops: of photos and drawn hands, in any order.
        margin: side of the crops, over that of tight ones.
        out: a folder.
        config: the run's settings.
        on_step: called after each step with its number and mean loss.
    """
    student = student.eval()
    if config.eight_bit:
        student = _gridded(student)
    mean = copy.deepcopy(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.learning_rate, weight_decay=0.0)
    start = _resume(out / STATE_FILE, student, mean, optimizer)
    for step in range(start, config.steps):
        optimizer.param_groups[0]["lr"] = _rate(step, config)
        part = crops.rows(_rows_of_step(step, len(crops.image), config))
        place = torch.arange(config.batch_size) + step * config.batch_size
        images, target = view(part, keys(config.seed, place), margin, config)
        loss = distance(student(shrunk(images, config.crop_px)), target, part.drawn).mean()
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


def fit_side(student: Landmarker, crops: Crops, margin: float, config: DistilConfig) -> float:
    """Fit the side's read-out to views of right hands and their mirror images, and return the share that it gets right.

    The distillation sees right hands alone, so the read-out forgets left ones.
    """
    images = crops.image
    parts = [(images, False), (images, True)]
    return _fit_read_out(student, student.heads.is_right, parts, margin, config)


def fit_presence(student: Landmarker, crops: Crops, margin: float, config: DistilConfig) -> float:
    """Fit the presence's read-out to hands as the network reads them, against the same at other turns.

    Return the share that it gets right. The distillation sees upright hands alone, so the read-out takes any turn for
    one that it can read; but only a low presence starts a search.
    """
    turned = torch.stack(
        [torch.rot90(image, 1 + number % 3, (0, 1)) for number, image in enumerate(crops.image)]
    )
    parts = [(crops.image, False), (turned, False)]
    return _fit_read_out(student, student.heads.presence, parts, margin, config)


def _fit_read_out(
    student: Landmarker,
    read_out: nn.Linear,
    parts: list[tuple[Tensor, bool]],
    margin: float,
    config: DistilConfig,
) -> float:
    """Fit a logistic regression on g: the first part's crops against the second's; a part may be mirrored."""
    found = []
    with torch.no_grad():
        for images, mirrored in parts:
            for rows in torch.arange(len(images)).split(32):
                crops = drawn_hands(images[rows], torch.zeros(len(rows), 21, 3))  # only the images count
                views, _ = view(crops, keys(config.seed + 1, rows), margin, config)
                small = shrunk(views.flip(-1) if mirrored else views, config.crop_px)
                found.append(student.backbone(small).g)
    g, count = torch.cat(found), len(parts[0][0])
    is_first = (torch.arange(len(g)) < count).float()
    optimizer = torch.optim.LBFGS(read_out.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        error = F.binary_cross_entropy_with_logits(read_out(g).squeeze(1), is_first)
        total: Tensor = error + READ_OUT_DECAY * read_out.weight.square().sum() / 2
        total.backward()
        return total

    optimizer.step(cost)
    with torch.no_grad():
        return float(((read_out(g).squeeze(1) > 0) == (is_first > 0.5)).float().mean())


def _rate(step: int, config: DistilConfig) -> float:
    """Return the learning rate: a linear warm-up, then half a cosine down to a hundredth."""
    warm = min((step + 1) / config.warmup_steps, 1.0)
    return config.learning_rate * warm * (0.505 + 0.495 * math.cos(math.pi * step / config.steps))


def shrunk(views: Tensor, crop_px: int) -> Tensor:
    """Return views at the student's size, channels last."""
    small = F.interpolate(views, size=crop_px, mode="bilinear", antialias=True)
    return small.contiguous(memory_format=torch.channels_last)


def _rows_of_step(step: int, count: int, config: DistilConfig) -> Tensor:
    """Return the rows of a step among `count` crops; each epoch has its own order, which follows from the seed."""
    place = torch.arange(config.batch_size) + step * config.batch_size
    order = torch.randperm(
        count, generator=torch.Generator().manual_seed(config.seed + int(place[0]) // count)
    )
    return order[place % count]


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
    """Load the state of an earlier run, if any; return the number of its steps."""
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
