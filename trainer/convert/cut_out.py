"""Segment hands in front of a plain wall by colour, so that training can replace the background.

For photos whose background is one surface under soft light. A smooth function of position models the wall's colour. It
is fitted to the photo's edges and to all pixels that match. The hand is every pixel that differs from the model and is
connected to the joints.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import max_pool2d

from annotator.photos.decode import decode_photo
from trainer.convert.photos import png

Floats = NDArray[np.floating]

#: Weights of colour differences. Brightness has little, because light falls off and hands cast shadows. Red against
#: green, and both against blue, separate skin from any grey.
_BRIGHTNESS, _RED_GREEN, _YELLOW_BLUE = 0.35, 2.4, 1.7

#: Minimum distance of a hand's colour from the wall's: in levels of 255, and in spreads of the wall's own colour.
_MIN_DISTANCE, _MIN_SPREADS = 12.0, 3.0

#: Larger photos are shrunk to this size.
_LARGEST_PX = 320

#: Range of a hand's share of the photo, and minimum joints on the hand; otherwise segmentation failed.
_SHARES, _MIN_JOINTS = (0.05, 0.7), 19


def outlined(row: dict[str, Any] | str) -> dict[str, Any] | str:
    """Add the hand's mask to an example without one, if segmentation succeeds."""
    if isinstance(row, str) or row.get("joints2d_px") is None or row.get("hand_mask") is not None:
        return row
    photo = decode_photo(row["image"])
    joints2d_px = np.asarray(row["joints2d_px"])
    if not np.isfinite(joints2d_px).all():
        return row
    mask = cut_out(photo.pixels, joints2d_px)
    return row if mask is None else row | {"hand_mask": png(mask)}


def cut_out(pixels: NDArray[np.uint8], joints2d_px: Floats) -> NDArray[np.uint8] | None:
    """Return the mask (H, W), 255 on the hand, of a photo (H, W, 3) RGB with joints (21, 2); None on failure."""
    shrink = max(1, max(pixels.shape[:2]) / _LARGEST_PX)
    size = pixels.shape[1::-1]
    if shrink > 1:
        small = (max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink)))
        pixels = np.asarray(Image.fromarray(pixels).resize(small, Image.Resampling.BOX))
        joints2d_px = joints2d_px / shrink
    distance, spread = _distance_from_wall(pixels)
    differs = torch.from_numpy(distance > max(_MIN_SPREADS * spread, _MIN_DISTANCE))[None, None].float()
    # Specks one pixel wide are noise.
    differs = _grown(_shrunk(differs)) * differs
    at = np.floor(joints2d_px).astype(int).clip(0, np.array(pixels.shape[1::-1]) - 1)
    hand = torch.zeros_like(differs)
    hand[0, 0, at[:, 1], at[:, 0]] = differs[0, 0, at[:, 1], at[:, 0]]
    while not torch.equal(more := _grown(hand) * differs, hand):
        hand = more
    found = int(hand[0, 0, at[:, 1], at[:, 0]].sum())
    share = float(hand.mean())
    if found < _MIN_JOINTS or not _SHARES[0] <= share <= _SHARES[1]:
        return None
    # Pixels on the outline are mixed with the wall's colour.
    mask = Image.fromarray((_shrunk(hand)[0, 0].numpy() * 255).astype(np.uint8))
    return np.asarray(mask if shrink == 1 else mask.resize(size, Image.Resampling.NEAREST))


def _distance_from_wall(pixels: NDArray[np.uint8]) -> tuple[Floats, float]:
    """Return each pixel's colour distance from the wall model (H, W), and its median over the wall."""
    red, green, blue = np.moveaxis(pixels.astype(np.float64), -1, 0)
    colour = np.stack(
        [
            _BRIGHTNESS * (red + green + blue) / 3,
            _RED_GREEN * (red - green) / 2,
            _YELLOW_BLUE * ((red + green) / 2 - blue) / 2,
        ],
        -1,
    )
    height, width = colour.shape[:2]
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None] - 0.5
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1)
    wall = (np.abs(x) > 0.4) | (y < -0.4)
    for _ in range(4):
        coefficients = np.linalg.lstsq(terms[wall], colour[wall], rcond=None)[0]
        distance = np.linalg.norm(colour - terms @ coefficients, axis=-1)
        spread = float(np.median(distance[wall]))
        wall = distance < max(_MIN_SPREADS * spread, _MIN_DISTANCE / 2)
    return distance, spread


def _grown(mask: torch.Tensor) -> torch.Tensor:
    return max_pool2d(mask, 3, 1, 1)


def _shrunk(mask: torch.Tensor) -> torch.Tensor:
    return 1 - _grown(1 - mask)
