"""Augment photos in batches on their device, and move every label with the pixels.

All randomness comes from the example's key, so a photo changes the same way on any worker.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from annotator.coordinates import axes_of_ray, in_plane_matrix, upright_square
from annotator.photos.cut import OUTSIDE, resample
from trainer.batch import Batch
from trainer.config import AugmentConfig
from trainer.keyed_random import Draws

if TYPE_CHECKING:  # only needed to change backgrounds
    from trainer.synth.backdrops import Backdrops

#: Weights of red, green and blue in grey.
_LUMINANCE = (0.299, 0.587, 0.114)


def prepare(
    batch: Batch, crop_px: int, margin: float, config: AugmentConfig, backdrops: Backdrops | None = None
) -> tuple[Tensor, Batch]:
    """Return images for the network (B, 3, crop_px, crop_px) float 0..1, and the batch with targets in these crops.

    `margin` is the width of the batch's images over that of a crop. With 1 only colours change: synthetic hands already
    come rotated, shifted, covered, blurred and noisy. `config.backdrop` is the share of photos that get `backdrops`.
    """
    draws = Draws(batch.key)
    images = batch.image.float() / 255
    if margin == 1 and not config.upright:
        return _colour(images, draws, config), batch
    motion = drawn_motion(draws, margin, config.rotation_deg, config.zoom, config.shift)
    if config.upright:
        motion = _off_upright(batch, margin, *motion)
    images, batch = move(images, batch, crop_px, *motion)
    if margin == 1:
        return _colour(images, draws, config), batch
    if backdrops is not None:
        images = backdrops.behind(images, batch, config.backdrop)
    images = _colour(images, draws, config)
    images = _blur(images, draws, config)
    images, batch = _erase(images, batch, draws, config)
    return noisy(images, draws, config.noise), batch


def drawn_motion(
    draws: Draws, margin: float, rotation_deg: float, zoom: float, shift: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw angle (B,), zoom (B,) and shift (B, 2), which place crops in images `margin` times as wide.

    `rotation_deg`, `zoom` and `shift` are the largest of each, either way.
    """
    largest = math.radians(rotation_deg)
    angles = draws.uniform(low=-largest, high=largest)
    zooms = _factor(draws, math.log(zoom))
    shifts = draws.uniform(2, low=-shift, high=shift)
    return angles, zooms / margin, shifts / margin


def _off_upright(
    batch: Batch, margin: float, angle: Tensor, zoom: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the motion to a square upright and tight around the 2D joints, offset by the given motion.

    A photo that lacks any of the 21 joints keeps the given motion.
    """
    square = upright_square(batch.joints2d.cpu().numpy())
    centre, half_side, upright_angle = (torch.from_numpy(x).to(batch.joints2d) for x in square)
    known = batch.has_joints2d.all(1) & (half_side > 0)
    size = margin * half_side
    return (
        torch.where(known, angle + upright_angle, angle),
        torch.where(known, zoom * size, zoom),
        torch.where(known[:, None], centre + shift * size[:, None], shift),
    )


def move(
    images: Tensor, batch: Batch, crop_px: int, angle: Tensor, zoom: Tensor, shift: Tensor
) -> tuple[Tensor, Batch]:
    """Cut crops rotated by `angle` (B,), `zoom` (B,) times the image's size, centred at `shift` (B, 2).

    Point q of the crop is point `zoom * T q + shift` of the image, where T rotates by `angle`. 2D joints move with the
    pixels. 3D follows the crop's axes: shift moves the ray, T rotates about the ray, zoom has no effect. 3D std stays,
    because shift rotates by a few degrees only. The visibility of joints outside the crop is unknown.
    """
    mirrored = torch.zeros_like(angle, dtype=torch.bool)  # none is mirrored
    both = torch.cat([images, batch.hand_mask.float() / 255], 1)
    # Outside the wide image: the padding colour, and no hand.
    moved = resample(both, shift, zoom, angle, mirrored, crop_px, (*OUTSIDE, 0))
    images, mask = moved[:, :3], moved[:, 3:]
    back = in_plane_matrix(angle, mirrored)  # row vectors: p @ T is T^-1 p
    rotation = back[:, :2, :2]
    joints2d = ((batch.joints2d - shift[:, None]) @ rotation) / zoom[:, None, None]
    ray = batch.ray + batch.half_side_tan[:, None] * shift
    back = axes_of_ray(batch.ray).mT @ axes_of_ray(ray) @ back
    moved_batch = replace(
        batch,
        joints2d=torch.where(batch.has_joints2d[..., None], joints2d, 0),
        joints2d_std=batch.joints2d_std / zoom[:, None],
        joints3d_mm=batch.joints3d_mm @ back,
        vertices_mm=batch.vertices_mm @ back,
        guess3d_mm=batch.guess3d_mm @ back,
        hand_mask=(mask * 255).round().byte(),
        has_joint_visible=batch.has_joint_visible & batch.has_joints2d & (joints2d.abs() <= 1).all(-1),
        ray=(ray[:, None] @ rotation)[:, 0],
        half_side_tan=batch.half_side_tan * zoom,
    )
    return images, moved_batch


def _colour(images: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """Change saturation, contrast, brightness and white balance; turn some photos grey."""
    reach = config.colour
    if reach == 0:
        return images
    grey = (images * torch.tensor(_LUMINANCE, device=images.device).view(3, 1, 1)).sum(1, keepdim=True)
    saturation = _factor(draws, reach, 1, 1, 1) * (~draws.chance(0.2 * reach)).float().view(-1, 1, 1, 1)
    images = grey + (images - grey) * saturation
    return relit(images, draws, reach).clamp(0, 1)


def relit(images: Tensor, draws: Draws, reach: float) -> Tensor:
    """Change contrast, brightness and white balance by factors of up to `exp(reach)`."""
    contrast, brightness = _factor(draws, reach, 1, 1, 1), _factor(draws, reach, 1, 1, 1)
    middle = images.mean((1, 2, 3), keepdim=True)
    images = middle + (images - middle) * contrast
    return images * brightness * _factor(draws, reach, 3, 1, 1) ** 0.3


def noisy(images: Tensor, draws: Draws, most: float) -> Tensor:
    """Add noise with an std of up to `most`."""
    noise = draws.uniform(1, 1, 1, high=most) * draws.normal(1, *images.shape[-2:])
    return (images + noise).clamp(0, 1)


def _factor(draws: Draws, reach: float, *shape: int) -> Tensor:
    """Draw factors (B, *shape) between `exp(-reach)` and `exp(reach)`."""
    return draws.uniform(*shape, low=-reach, high=reach).exp()


def _blur(images: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """Coarsen some photos: shrink them by up to four and enlarge them again."""
    size = images.shape[-1]
    share, factor = draws.uniform(), draws.choice([1.0, 1.0, 1.0])
    for index, shrink in enumerate((1.5, 2.2, 4.0)):
        rows = ((share < config.blur) & (factor == index)).nonzero().squeeze(1)
        if len(rows):
            small = F.interpolate(images[rows], size=int(size / shrink), mode="area")
            images = images.index_copy(0, rows, F.interpolate(small, size=size, mode="bilinear"))
    return images


def _erase(images: Tensor, batch: Batch, draws: Draws, config: AugmentConfig) -> tuple[Tensor, Batch]:
    """Cover a rotated rectangle of some photos with a grainy colour."""
    count, _, size, _ = images.shape
    angle, centre = draws.uniform(low=0, high=math.pi), draws.uniform(2, low=-0.9, high=0.9)
    half = draws.uniform(2, low=0.08, high=0.4)
    colour = draws.uniform(3, 1, 1)
    grainy = draws.normal(1, 8, 8) * draws.uniform(1, 1, 1, high=0.2)
    erased = draws.chance(config.erase)
    at = (torch.arange(size, device=images.device) * 2 + 1) / size - 1
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]

    def erases(x: Tensor, y: Tensor) -> Tensor:
        x, y = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
        return (
            ((x * cos + y * sin).abs() < half[:, 0, None, None])
            & ((y * cos - x * sin).abs() < half[:, 1, None, None])
            & erased[:, None, None]
        )

    inside = erases(at[None, None, :], at[None, :, None])[:, None]
    patch = colour + F.interpolate(grainy, size=size, mode="bilinear")
    if not bool(erased.any()):
        return images, batch
    images = torch.where(inside, patch.expand(count, 3, size, size), images)
    mask = torch.where(inside, torch.zeros_like(batch.hand_mask), batch.hand_mask)
    hidden = erases(batch.joints2d[:, None, :, 0], batch.joints2d[:, None, :, 1])[:, 0]
    # The patch hides the hand's colour, and joints.
    return images, replace(batch, hand_mask=mask, joint_visible=batch.joint_visible & ~hidden)
