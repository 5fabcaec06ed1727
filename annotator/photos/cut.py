"""Cut square crops out of pixels: `cut` out of a photo, `resample` out of wider crops in batches of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotator.coordinates import CropFrame, in_plane_matrix

if TYPE_CHECKING:  # decoders use this file, and start seconds faster without torch
    from torch import Tensor

#: Colour of a crop beyond the photo's edge: ImageNet's mean, which the network normalises to zero.
OUTSIDE_RGB = (124, 116, 104)
OUTSIDE = tuple(level / 255 for level in OUTSIDE_RGB)


def cut(pixels: NDArray[np.uint8], frame: CropFrame, crop_px: int, photo_width: int) -> NDArray[np.uint8]:
    """Resample one crop: (crop_px, crop_px, 3) uint8, `OUTSIDE_RGB` beyond the photo's edge, upright, never mirrored.

    `pixels` (H, W, 3) may be a scaled-down photo; `frame` is in pixels of the full photo, `photo_width` wide.
    """
    scale = pixels.shape[1] / photo_width
    # Shrinking by an integer factor first limits the canvas for any size and shape of photo.
    shrink = int(float(frame.half_side_px) * scale / crop_px)
    if shrink > 1:
        pixels = np.asarray(Image.fromarray(pixels).reduce(shrink))
        scale /= shrink
    height, width = pixels.shape[:2]
    cx, cy = np.asarray(frame.centre_px) * scale
    half = float(frame.half_side_px) * scale
    box = (cx - half, cy - half, cx + half, cy + half)
    left, top, right, bottom = (math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
    inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    if (left, top, right, bottom) == inside:
        canvas = Image.fromarray(pixels)
    else:
        canvas = Image.new("RGB", (right - left, bottom - top), OUTSIDE_RGB)
        if inside[0] < inside[2] and inside[1] < inside[3]:
            part = pixels[inside[1] : inside[3], inside[0] : inside[2]]
            canvas.paste(Image.fromarray(np.ascontiguousarray(part)), (inside[0] - left, inside[1] - top))
        box = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    # Pillow's resize widens its filter when it shrinks, so that small crops of big photos don't alias.
    return np.asarray(canvas.resize((crop_px, crop_px), Image.Resampling.BILINEAR, box=box))


def resample(
    images: Tensor,
    centre: Tensor,
    half_side: Tensor,
    rotation_rad: Tensor,
    mirrored: Tensor,
    size_px: int,
    outside: Sequence[float] = OUTSIDE,
) -> Tensor:
    """Cut rotated, mirrored squares (B, C, size_px, size_px) out of square images (B, C, S, S), bilinearly; tensors.

    A crop's point p shows the image's `centre + half_side * in_plane_matrix(rotation_rad, mirrored) @ p`, see
    `CropFrame`. If any crop shrinks its image by more than 1.5, each pixel is the mean of several samples.

    Args:
        images: in 0..1, e.g. crops cut wider than needed.
        centre: (B, 2) of the square, in the image's own coordinates, -1 to 1.
        half_side: (B,), in the same coordinates.
        rotation_rad: (B,).
        mirrored: (B,) bool.
        size_px: side of the crops.
        outside: the colour (C,) beyond the images.
    """
    import torch
    from torch.nn import functional as F

    samples = max(1, math.ceil(float(half_side.max()) * images.shape[-1] / size_px / 1.5))
    matrix = (in_plane_matrix(rotation_rad, mirrored)[:, :2, :2] * half_side[:, None, None]).to(images)
    # The centres of all samples, as of `affine_grid`, which is slower.
    steps = (2 * torch.arange(size_px * samples).to(images) + 1) / (size_px * samples) - 1
    across, down = matrix[..., 0, None] * steps, matrix[..., 1, None] * steps + centre[..., None].to(images)
    grid = torch.stack([across[:, k, None, :] + down[:, k, :, None] for k in range(2)], -1)
    # Relative to the colour outside, everything beyond the image is 0, as `grid_sample` pads.
    colour = images.new_tensor(outside).view(-1, 1, 1)
    sampled = F.grid_sample(images - colour, grid, align_corners=False)
    if samples > 1:  # a pool of one pixel takes longer than the sampling
        sampled = F.avg_pool2d(sampled, samples)
    return sampled + colour
