"""Train a first look: 2D joints, side and presence of a hand in any rotation. Not in the paper.

The network sees the crops that boxes give, of right and left hands alike. They have random errors in size and position,
and are rotated by any angle. 2D joints of a detector are the target; the second look corrects their errors. Beyond the
edge of a photo, views show another scene without a hand or a plain colour, so that edges do not reveal the rotation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotator.coordinates import in_plane_matrix
from annotator.model.network import Features, Network
from annotator.photos.crops import BOX_PADDING
from annotator.photos.cut import resample
from trainer.config import AugmentConfig
from trainer.distillation.config import FirstLookConfig
from trainer.distillation.examples import coloured, shrunk
from trainer.distillation.training_loop import train_with_running_mean
from trainer.keyed_random import Draws, keys

#: Crop half-sides: 2D joints count by this unit.
JOINTS_UNIT = 0.05

#: Sides of the views before they shrink, and of what they show beyond photos, over the network's crops.
_VIEWED, _BEYOND = 1.5, 0.75

#: Side of the photo inside a crop without a hand, over the crop's.
EMPTY_SHARE = 0.6

#: Batches that measure the statistics of batch norms at the network's crop size.
_MEASURED = 16


class WideExamples(NamedTuple):
    """Crops around N right hands in any rotation, several times as wide as tight ones, or without a hand."""

    image: Tensor  # (N, S, S, 4) uint8: RGB, and 255 inside the photo
    joints2d: (
        Tensor  # (N, 21, 2) in the coordinates of the crops; without a hand, the corners of a square to show
    )
    is_hand: Tensor  # (N,) bool
    chance: Tensor  # (N,) of being in a step, relative to the others

    def rows(self, rows: Tensor | slice) -> WideExamples:
        """Return some of the crops."""
        return WideExamples(*(values[rows] for values in self))

    @staticmethod
    def joined(parts: list[WideExamples]) -> WideExamples:
        """Return the crops of all parts."""
        return WideExamples(*(torch.cat(values) for values in zip(*parts, strict=True)))


class RotatedViews(NamedTuple):
    """B views of crops, and what they show."""

    image: Tensor  # (B, 3, crop_px, crop_px) in 0..1
    joints2d: Tensor  # (B, 21, 2) in the coordinates of the views
    is_hand: Tensor  # (B,) bool
    is_right: Tensor  # (B,) bool


def rotated_views(
    crops: WideExamples, beyond: Tensor, key: Tensor, crop_px: int, config: FirstLookConfig
) -> RotatedViews:
    """Return views of crops, mirrored or not; `beyond` (B, S, S, 3) uint8 shows beyond their photos."""
    draws, count = Draws(key), len(crops.image)
    angle = draws.uniform(low=-math.pi, high=math.pi)
    mirrored = draws.uniform() < 0.5
    rotation = in_plane_matrix(angle, torch.zeros_like(mirrored))[:, :2, :2]
    rotated = crops.joints2d @ rotation  # along the view's axes, where its box is
    low, high = rotated.amin(1), rotated.amax(1)
    reach = math.log(config.zoom)
    half_side = (high - low).amax(1) / 2 * BOX_PADDING * draws.uniform(low=-reach, high=reach).exp()
    shift = draws.uniform(2, low=-config.shift, high=config.shift) * half_side[:, None]
    centre = (rotation @ ((low + high) / 2 + shift)[..., None])[..., 0]
    viewed_px = round(crop_px * _VIEWED)
    shown = resample(_unit(crops.image), centre, half_side, angle, mirrored, viewed_px, (0, 0, 0, 0))
    other = resample(
        _unit(beyond),
        torch.zeros(count, 2),
        torch.full((count,), 1 / math.sqrt(2)),
        draws.uniform(low=-math.pi, high=math.pi),
        mirrored,
        round(crop_px * _BEYOND),
    )
    other = F.interpolate(other, size=viewed_px, mode="bilinear")
    plain = draws.uniform(3, 1, 1).expand_as(other)
    other = torch.where(draws.uniform(1, 1, 1) < 0.5, other, plain)
    inside = shown[:, 3:]
    images = coloured(shown[:, :3] * inside + other * (1 - inside), draws, AugmentConfig())
    matrix = in_plane_matrix(angle, mirrored)[:, :2, :2]
    joints2d = (crops.joints2d - centre[:, None]) / half_side[:, None, None] @ matrix
    return RotatedViews(shrunk(images, crop_px), joints2d, crops.is_hand, ~mirrored)


def first_look_loss(network: Network, features: Features, views: RotatedViews) -> Tensor:
    """Return how far a network's 2D joints, presence and side are from the views': the mean over hands."""
    assert features.joints2d is not None  # a first look has landmarks
    hands = views.is_hand.float()
    off = (features.joints2d - views.joints2d) / JOINTS_UNIT
    joints = F.smooth_l1_loss(off, torch.zeros_like(off), reduction="none").mean((1, 2))
    side = F.binary_cross_entropy(network.is_right(features), views.is_right.float(), reduction="none")
    presence = F.binary_cross_entropy(network.is_hand(features), hands)
    return ((joints + side) * hands).sum() / hands.sum().clamp_min(1) + presence


def teach_first_look(
    network: Network,
    crops: WideExamples,
    out: Path,
    config: FirstLookConfig,
    on_save: Callable[[Network], None],
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Network:
    """Train a first look and return the running mean of its weights; OUT keeps the run, which resumes there.

    Args:
        network: with landmarks; its backbone has seen hands, at any size.
        crops: of photos and synthetic hands, some without a hand, in any order.
        out: a folder.
        config: the run's settings.
        on_save: called with the running mean at each saved step.
        on_step: called after each step with its number and loss.
    """
    px = network.config.crop_px
    _measure_statistics(network, lambda step: views_of_step(crops, step, px, config).image)

    def loss(student: Network, step: int) -> Tensor:
        views = views_of_step(crops, step, px, config)
        return first_look_loss(student, student.extract(views.image), views)

    return train_with_running_mean(network, loss, out, config, on_save, on_step)


def views_of_step(crops: WideExamples, step: int, crop_px: int, config: FirstLookConfig) -> RotatedViews:
    """Return a step's views; crops are drawn by their chance."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    part = crops.rows(torch.multinomial(crops.chance, config.batch_size, True, generator=generator))
    (empty,) = torch.where(~crops.is_hand)
    chosen = empty[torch.randint(len(empty), (config.batch_size,), generator=generator)]
    edge = round(crops.image.shape[1] * (1 - EMPTY_SHARE) / 2)
    beyond = crops.image[chosen, edge:-edge, edge:-edge, :3]
    return rotated_views(part, beyond, keys(config.seed, config.numbers(step)), crop_px, config)


def _unit(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def _measure_statistics(network: Network, images_of_step: Callable[[int], Tensor]) -> None:
    """Set the statistics of batch norms to those of some batches: they depend on the crop size."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for step in range(_MEASURED):
        network.extract(images_of_step(step))
    for norm, before in zip(norms, momentum, strict=True):
        norm.momentum = before
        norm.eval()
