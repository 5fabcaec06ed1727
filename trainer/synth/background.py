"""Backgrounds: plain walls, rooms full of objects, cloth, bricks, text, people."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.keyed_random import Draws
from trainer.synth.colour import lab_to_linear
from trainer.synth.patterns import COUNT

#: Maximum number of objects in front of a background.
OBJECTS = 9

#: Shares: a plain ground; a wall or table with a few objects; a room full of objects.
_KINDS = [0.22, 0.28, 0.5]
_PERSON = 0.14
# Objects with a pattern; the first of a person's four parts is the trunk.
_CLOTHED = (0, 3, OBJECTS - 4)
_ROUND = (1, 3, OBJECTS - 4, OBJECTS - 2, OBJECTS - 1)


@dataclass(frozen=True, eq=False)
class _Objects:
    """Flat objects in front of a wall; the first `number` of each photo are shown, the last is the front one."""

    number: Tensor  # (B,)
    middle: Tensor  # (B, OBJECTS, 2), -1..1 across the photo
    half: Tensor  # (B, OBJECTS, 2) half sizes
    rotation: Tensor  # (B, OBJECTS)
    sharpness: Tensor  # (B, OBJECTS) of the edge
    opacity: Tensor  # (B, OBJECTS)
    colours: Tensor  # (B, OBJECTS, 3) linear RGB
    pattern: Tensor  # (B, size_px, size_px) of cloth
    pattern_strength: Tensor  # (B, OBJECTS)


def backgrounds(size_px: int, bank: Tensor, skin: Tensor, light: Tensor, draws: Draws) -> Tensor:
    """Return backgrounds in linear RGB (B, 3, size_px, size_px), 0..1.

    Args:
        size_px: side.
        bank: patterns of `patterns`.
        skin: (B, 3) linear RGB, for people in the background.
        light: (B, 1, size_px, size_px) that reaches the background.
        draws: one stream per photo.
    """
    centre = (torch.arange(size_px, device=draws.key.device) * 2 + 1) / size_px - 1
    y, x = centre[None, :, None], centre[None, None]
    kind = draws.choice(_KINDS)
    colours, share, wall = _grounds(x, y, kind == 0, bank, draws)
    image = _composed(x, y, _objects(kind, size_px, bank, skin, draws), colours, share, wall)
    for cells, strength in ((4, 0.16), (14, 0.05)):
        noise = draws.normal(1, cells, cells) * draws.uniform(1, 1, 1) * strength
        light = light * (
            1 + F.interpolate(noise, size=(size_px, size_px), mode="bilinear", align_corners=False)
        )
    return (image * light).clamp_(0, 1)


def _grounds(
    x: Tensor, y: Tensor, plain: Tensor, bank: Tensor, draws: Draws
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw two colours (B, 2, 3), the share of the first (B, S, S), and the pattern over both (B, 1, S, S)."""
    room = room_colours(draws, 2)
    # Plain grounds are mostly bright, with two similar colours.
    bright = draws.uniform(1, low=0.25, high=1.0) * torch.exp(0.04 * draws.normal(3))
    room[:, 0] = torch.where((plain & draws.chance(0.6))[:, None], bright.clamp(max=1), room[:, 0])
    room[:, 1] = torch.where(plain[:, None], room[:, 0] * draws.uniform(1, low=0.5, high=1.0), room[:, 1])
    angle = draws.uniform(1, 1, high=2 * math.pi)
    across = x * angle.cos() + y * angle.sin() - draws.uniform(1, 1, low=-0.6, high=0.6)
    # Between a soft gradient of light and the edge of a table.
    steep = draws.uniform(1, 1, low=-1.0, high=3.5).exp()
    steep = torch.where(plain[:, None, None], 0.4, steep)
    share = (across * steep + 0.5).clamp(0, 1)
    papered = (draws.chance(0.35) & ~plain) * draws.uniform(high=0.9)
    return room, share, 1 + (papered_with(bank, x.shape[-1], draws) - 0.5) * papered[:, None, None, None]


def _objects(kind: Tensor, size_px: int, bank: Tensor, skin: Tensor, draws: Draws) -> _Objects:
    """Draw the objects of each photo; in some, the last four are a person behind the hand."""
    plain = kind == 0
    number = torch.where(
        kind == 1, (draws.uniform() * 4).long(), 3 + (draws.uniform() * (OBJECTS - 2)).long()
    )
    number = number.masked_fill(plain, 0)
    cloth = papered_with(bank, size_px, draws) - 0.6
    colours = room_colours(draws, OBJECTS)
    # Some objects have the colour of skin, like arms and faces.
    tone = skin[:, None] * torch.exp(0.12 * draws.normal(OBJECTS, 3))
    colours = torch.where(draws.uniform(OBJECTS, 1) < 0.14, tone, colours).clamp(0, 1)
    middle = draws.uniform(OBJECTS, 2, low=-1.1, high=1.1)
    half = draws.uniform(OBJECTS, 2, low=-2.4, high=-0.2).exp()
    rotation = draws.uniform(OBJECTS, high=math.pi)
    rotation = torch.where(
        draws.uniform(OBJECTS) < 0.5, (rotation * 2 / math.pi).round() * (math.pi / 2), rotation
    )
    sharpness = draws.uniform(1, low=1.2, high=3.6).exp() * draws.uniform(OBJECTS, low=0.5, high=1.0)
    strength = draws.uniform(OBJECTS, high=1.0)
    opacity = draws.uniform(OBJECTS, low=0.6, high=1.3).clamp(max=1)
    # A person behind the hand: trunk, neck, head and hair, without eyes or mouth.
    person = draws.chance(_PERSON) & ~plain
    body = _person(draws)
    middle[:, -4:], half[:, -4:] = (
        torch.where(person[:, None, None], new, old)
        for new, old in zip(body, (middle[:, -4:], half[:, -4:]), strict=True)
    )
    rotation[:, -4:].masked_fill_(person[:, None], 0)
    own = torch.stack([colours[:, -4], skin * 0.8, colours[:, -1] * 0.15, skin], 1)
    colours[:, -4:] = torch.where(person[:, None, None], own, colours[:, -4:])
    strength[:, -4] = torch.where(person, 0.8, strength[:, -4])
    number = torch.where(person, OBJECTS, number)
    opacity[:, -4:].masked_fill_(person[:, None], 1)
    return _Objects(number, middle, half, rotation, sharpness, opacity, colours, cloth[:, 0], strength)


def _composed(x: Tensor, y: Tensor, objects: _Objects, ground: Tensor, share: Tensor, wall: Tensor) -> Tensor:
    """Return the objects in front of their ground (B, 3, S, S): one product of colours and their shares per pixel."""
    # From front to back: each object's contribution, and the remaining visibility behind it.
    left = torch.ones_like(share)
    paint: list[Tensor] = []
    shares = share.new_empty(len(share), OBJECTS + len(_CLOTHED) + 2, *share.shape[1:])
    for k in reversed(range(OBJECTS)):
        cover = torch.mul(_cover(x, y, objects, k), left, out=shares[:, len(paint)])
        left = left - cover
        paint.append(objects.colours[:, k])
        if k in _CLOTHED:
            torch.mul(cover, objects.pattern, out=shares[:, len(paint)])
            paint.append(objects.colours[:, k] * objects.pattern_strength[:, k, None])
    left = left * wall[:, 0]
    torch.mul(left, share, out=shares[:, -1])
    torch.sub(left, shares[:, -1], out=shares[:, -2])
    paint += [ground[:, 0], ground[:, 1]]
    return torch.bmm(torch.stack(paint, 2), shares.flatten(2)).view(-1, 3, *share.shape[1:])


def _cover(x: Tensor, y: Tensor, objects: _Objects, k: int) -> Tensor:
    """Return the opacity of an object at each pixel (B, S, S), 0..1."""
    rotation, middle, half = objects.rotation[:, k], objects.middle[:, k], objects.half[:, k]
    cos, sin = rotation.cos()[:, None, None], rotation.sin()[:, None, None]
    dx, dy = x - middle[:, :1, None], y - middle[:, 1:, None]
    wide, high = half[:, :1, None], half[:, 1:, None]
    along, over = dx * (cos / wide) + dy * (sin / wide), dy * (cos / high) - dx * (sin / high)
    edge = (half.amin(1) * objects.sharpness[:, k] * 4).clamp(min=2)[:, None, None]
    if k in _ROUND:
        cover = torch.addcmul(along.square_(), over, over).mul_(-edge / 2).add_(edge / 2 + 0.5)
    else:
        cover = torch.maximum(along.abs_(), over.abs_()).mul_(-edge).add_(edge + 0.5)
    return cover.clamp_(0, 1).mul_(((k < objects.number) * objects.opacity[:, k])[:, None, None])


def _person(draws: Draws) -> tuple[Tensor, Tensor]:
    """Draw centres and half sizes (B, 4, 2) of trunk, neck, hair and face."""
    scale = draws.uniform(1, low=0.25, high=0.75)
    head = torch.stack([draws.uniform(low=-0.9, high=0.9), draws.uniform(low=-0.9, high=0.2)], 1)
    offsets = torch.tensor([[0, 2.9], [0, 1.1], [0, -0.25], [0, 0.0]], device=scale.device)
    sizes = torch.tensor([[1.75, 1.7], [0.42, 0.6], [0.85, 1.0], [0.7, 0.95]], device=scale.device)
    jitter = torch.exp(0.08 * draws.normal(4, 2))
    middle = head[:, None] + offsets * scale[:, None]
    return middle, sizes * scale[:, None] * jitter


def room_colours(draws: Draws, number: int) -> Tensor:
    """Draw linear RGB (B, number, 3): mostly greys, wood and cloth; sometimes a strong colour."""
    lab = (
        draws.normal(number, 3) * draws.key.new_tensor([0, 6, 9]).float()
        + draws.key.new_tensor([0, 1, 5]).float()
    )
    lab[..., 1:] *= torch.where(draws.uniform(number, 1) < 0.25, 3.5, 1.0)
    lab[..., 0] = draws.uniform(number, low=5, high=97)
    return lab_to_linear(lab)


def papered_with(bank: Tensor, size_px: int, draws: Draws) -> Tensor:
    """Draw a rotated and scaled pattern of the bank (B, 1, size_px, size_px), 0..1."""
    chosen = bank[(draws.uniform() * COUNT).long()][:, None]
    angle = (draws.uniform() * 4).round() * (math.pi / 2) + 0.25 * draws.normal()
    scale = torch.exp(draws.uniform(low=-1.6, high=0.6))
    centre = (torch.arange(size_px, device=bank.device) * 2 + 1) / size_px - 1
    cos, sin = ((f(angle) * scale)[:, None, None] for f in (torch.cos, torch.sin))
    shift = draws.uniform(2, low=-1, high=1)
    x, y = centre[None, None], centre[None, :, None]
    across = x * cos - (y * sin - shift[:, :1, None])
    grid = torch.stack([across, x * sin + (y * cos + shift[:, 1:, None])], 1).permute(0, 2, 3, 1)
    return F.grid_sample(chosen, grid, padding_mode="reflection", align_corners=False)
