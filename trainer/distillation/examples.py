"""Crops with target landmarks, from the teacher or drawn, and the views of them that the student sees."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from annotator.coordinates import in_plane_matrix
from annotator.model.landmarker.network import Landmarker, LandmarkHand
from annotator.photos.cut import resample
from trainer.augment import drawn_motion, noisy, relit
from trainer.config import AugmentConfig
from trainer.distillation.config import DistilConfig
from trainer.keyed_random import Draws

#: Side of the teacher's crops.
TEACHER_PX = 224

#: Logit of a synthetic hand's presence and side.
SURE = 6.0


class LandmarkExamples(NamedTuple):
    """Upright crops of N right hands, or views of them, and the target of a network for each."""

    image: Tensor  # (N, S, S, 3) uint8
    target: LandmarkHand  # in the coordinates of the crops; world landmarks of synthetic hands are 0
    drawn: Tensor  # (N,) bool: the target is the truth, up to TOLERANCE

    def rows(self, rows: Tensor | slice) -> LandmarkExamples:
        """Return some of the crops."""
        return LandmarkExamples(self.image[rows], self.target.rows(rows), self.drawn[rows])

    def joined(self, other: LandmarkExamples) -> LandmarkExamples:
        """Return the crops of both."""
        target = LandmarkHand(*(torch.cat(pair) for pair in zip(self.target, other.target, strict=True)))
        return LandmarkExamples(
            torch.cat([self.image, other.image]), target, torch.cat([self.drawn, other.drawn])
        )


@torch.no_grad()
def taught_examples(teacher: Landmarker, images: Tensor, margin: float) -> LandmarkExamples:
    """Return crops (N, S, S, 3) uint8 of photos with the teacher's hands: it sees each upright, tight and unchanged."""
    hands = []
    for part in images.split(32):
        count = len(part)
        still = torch.zeros(count), torch.full((count,), 1 / margin), torch.zeros(count, 2)
        hands.append(teacher.eval()(_cut(part, *still)))
    target = LandmarkHand(*(torch.cat(values) for values in zip(*hands, strict=True)))
    target = target._replace(image=target.image / margin)
    return LandmarkExamples(images, target, torch.zeros(len(images), dtype=torch.bool))


def drawn_examples(images: Tensor, landmarks: Tensor) -> LandmarkExamples:
    """Return crops (N, S, S, 3) uint8 of synthetic hands with their true landmarks (N, 21, 3), crop coordinates."""
    sure = torch.full((len(images),), SURE)
    target = LandmarkHand(landmarks, torch.zeros_like(landmarks), sure, sure)
    return LandmarkExamples(images, target, torch.ones(len(images), dtype=torch.bool))


def view(
    crops: LandmarkExamples, key: Tensor, margin: float, config: DistilConfig
) -> tuple[Tensor, LandmarkHand]:
    """Return views (B, 3, 224, 224) in 0..1 of crops that show `margin` times a tight crop, and their targets."""
    draws = Draws(key)
    angle, zoom, shift = drawn_motion(draws, margin, config.rotation_deg, config.zoom, config.shift)
    images = coloured(_cut(crops.image, angle, zoom, shift), draws, AugmentConfig())
    matrix = in_plane_matrix(angle, torch.zeros_like(angle, dtype=torch.bool))
    image = (crops.target.image - F.pad(shift, (0, 1))[:, None]) @ matrix / zoom[:, None, None]
    return images, crops.target._replace(image=image, world_mm=crops.target.world_mm @ matrix)


def _cut(crops: Tensor, angle: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    """Return the squares (B, 3, 224, 224) in 0..1 of crops (B, S, S, 3) uint8, in their coordinates."""
    images = crops.permute(0, 3, 1, 2).float() / 255
    return resample(images, shift, zoom, angle, torch.zeros_like(angle, dtype=torch.bool), TEACHER_PX)


def coloured(images: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """Change contrast, brightness and balance, and add noise."""
    return noisy(relit(images, draws, config.colour), draws, config.noise)


def shrunk(views: Tensor, crop_px: int) -> Tensor:
    """Return views at the student's size, channels last."""
    small = F.interpolate(views, size=crop_px, mode="bilinear", antialias=True)
    return small.contiguous(memory_format=torch.channels_last)
