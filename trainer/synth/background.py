"""What lies out of focus behind a hand: a wall or table in two colours, things in front of it, soft light."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer.synth.colour import lab_to_linear

Floats = NDArray[np.floating]

#: Backgrounds are out of focus, so they are drawn small.
GRID_PX = 80
THINGS = 14


def backgrounds(count: int, size_px: int, generator: np.random.Generator) -> Tensor:
    """Linear RGB (count, size_px, size_px, 3) in 0..1."""
    centre = (np.arange(GRID_PX) + 0.5) / GRID_PX * 2 - 1
    xy = np.stack(np.meshgrid(centre, centre), -1).astype(np.float32)
    room = _room_colours(count, 2, generator)
    angle = _uniform(0, 2 * np.pi, (count, 1, 1), generator)
    across = xy[..., 0] * np.cos(angle) + xy[..., 1] * np.sin(angle)
    # From a soft change of light to the edge of a table.
    edge = _uniform(-0.6, 0.6, (count, 1, 1), generator)
    share = _logistic((across - edge) * np.exp(_uniform(0, 4, (count, 1, 1), generator)))[..., None]
    image = room[:, 0, None, None] * (1 - share) + room[:, 1, None, None] * share
    blur = np.exp(_uniform(0.9, 3.2, (count, 1, 1), generator))
    things = generator.integers(0, THINGS + 1, count)
    for thing in range(THINGS):
        colour = _room_colours(count, 1, generator)[:, 0, None, None]
        cover = _shape(xy, blur, count, generator) * _uniform(0.5, 1, (count, 1, 1), generator)
        cover = (cover * (thing < things)[:, None, None])[..., None]
        image = image * (1 - cover) + colour * cover
    picture = torch.from_numpy(image).permute(0, 3, 1, 2)
    for cells, strength in ((5, 0.12), (12, 0.06), (32, 0.03)):
        noise = torch.from_numpy(generator.standard_normal((count, 1, cells, cells), np.float32))
        picture = picture * (1 + strength * _resized(noise, GRID_PX))
    return _resized(picture.clamp(0, 1), size_px).clamp(0, 1).permute(0, 2, 3, 1)


def _room_colours(count: int, number: int, generator: np.random.Generator) -> Floats:
    """Linear RGB (count, number, 3): mostly greys, wood and cloth; now and then a strong colour."""
    lab = generator.normal(size=(count, number, 3)) * [0.0, 6.0, 9.0] + [0.0, 1.0, 5.0]
    lab[..., 1:] *= np.where(generator.random((count, number, 1)) < 0.2, 3.0, 1.0)
    lab[..., 0] = generator.uniform(12, 95, (count, number))
    return lab_to_linear(lab).astype(np.float32)


def _shape(xy: Floats, blur: Floats, count: int, generator: np.random.Generator) -> Floats:
    """How much of each pixel (count, GRID_PX, GRID_PX) one blurred ellipse, box or bar covers."""
    middle = _uniform(-1.1, 1.1, (2, count, 1, 1), generator)
    half = np.exp(_uniform(-2.6, -0.3, (2, count, 1, 1), generator))
    angle = _uniform(0, np.pi, (count, 1, 1), generator)
    x, y = np.moveaxis(xy, -1, 0)[:, None] - middle
    along = np.abs(x * np.cos(angle) + y * np.sin(angle)) / half[0]
    across = np.abs(y * np.cos(angle) - x * np.sin(angle)) / half[1]
    is_box = generator.random((count, 1, 1)) < 0.5
    radius = np.where(is_box, np.maximum(along, across), np.hypot(along, across))
    return _logistic((1 - radius) * half.min(0) * 4 * blur)


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: np.random.Generator) -> Floats:
    return generator.uniform(low, high, shape).astype(np.float32)


def _logistic(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-values.clip(-30, 30)))


def _resized(images: Tensor, size_px: int) -> Tensor:
    return F.interpolate(images, size=(size_px, size_px), mode="bicubic", align_corners=False)
