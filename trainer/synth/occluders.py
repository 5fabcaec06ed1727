"""Flat occluders: things out of focus in front of the hand, and the photo's own edge."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from annotator.photos.cut import OUTSIDE_RGB
from trainer.keyed_random import Draws
from trainer.synth.background import papered_with, room_colours
from trainer.synth.scene import Scene

#: Shares of photos.
BEFORE_SHARE, EDGE_SHARE = 0.09, 0.12


def cover_with_objects(photo: Tensor, bank: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Cover some photos (B, 3, S, S) by a bar, ellipse or edge; return them and the cover (B, 1, S, S)."""
    size, device = photo.shape[-1], photo.device
    chosen = draws.chance(BEFORE_SHARE)
    centre = (torch.arange(size, device=device) * 2 + 1) / size - 1
    angle = draws.uniform(high=2 * math.pi)[:, None, None]
    middle = draws.uniform(2, low=-0.75, high=0.75)
    long = draws.uniform(low=0.15, high=1.5)[:, None, None]
    wide = draws.uniform(low=0.04, high=0.22)[:, None, None]
    colour, box = room_colours(draws, 1)[:, 0], draws.chance(0.6)[:, None, None]
    soft = draws.uniform(low=4, high=30)[:, None, None]
    rows = chosen.nonzero().squeeze(1)
    covered = torch.zeros_like(photo[:, :1])
    if not len(rows):
        return photo, covered
    x = centre[None, None] - middle[rows, :1, None]
    y = centre[None, :, None] - middle[rows, 1:, None]
    along = (x * angle[rows].cos() + y * angle[rows].sin()).abs() / long[rows]
    over = (y * angle[rows].cos() - x * angle[rows].sin()).abs() / wide[rows]
    radius = torch.where(box[rows], torch.maximum(along, over), (along * along + over * over).sqrt())
    cover = ((1 - radius) * wide[rows] * soft[rows] + 0.5).clamp(0, 1)[:, None]
    own = Draws(draws.key[rows])
    paint = colour[rows, :, None, None] * (0.7 + 0.3 * papered_with(bank, size, own))
    covered[rows] = cover
    return photo.index_copy(0, rows, torch.lerp(photo[rows], paint, cover)), covered


def beyond_the_photo(image: Tensor, scene: Scene, draws: Draws) -> tuple[Tensor, Tensor]:
    """Let some crops (B, 3, S, S) uint8 reach beyond their photo, into the colour of `annotator.photos.cut` or black.

    Returns the crops and the mask of the outside, (B, 1, S, S) bool.
    """
    size, device = image.shape[-1], image.device
    chosen = draws.chance(EDGE_SHARE)
    side = (draws.uniform() * 4).long()
    share = draws.uniform(low=0.02, high=0.3)
    black = draws.chance(0.3)
    # Little of the hand itself is cut off.
    seen = scene.project(scene.joints3d_mm)
    room = (
        torch.stack(
            [
                1 + seen[..., 0].amin(1),
                1 - seen[..., 0].amax(1),
                1 + seen[..., 1].amin(1),
                1 - seen[..., 1].amax(1),
            ],
            1,
        )
        / 2
    )
    share = torch.minimum(share, room.gather(1, side[:, None])[:, 0] + 0.04)
    way = (torch.arange(size, device=device) + 0.5) / size
    way = torch.where((side % 2 == 0)[:, None], way, 1 - way)
    outside = (way < share[:, None]) & chosen[:, None]
    outside = torch.where((side < 2)[:, None, None], outside[:, None], outside[:, :, None])[:, None]
    colour = torch.tensor(OUTSIDE_RGB, dtype=torch.uint8, device=device).view(1, 3, 1, 1)
    colour = torch.where(black[:, None, None, None], torch.zeros_like(colour), colour)
    return torch.where(outside, colour, image), outside
