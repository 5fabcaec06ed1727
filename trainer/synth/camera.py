"""A camera model from light to a stored photo: exposure, white balance, blur, noise, low resolution, JPEG."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.keyed_random import Draws, keys
from trainer.synth.colour import stored

#: Native sizes of photos, as shares of the final size, and their probabilities.
NATIVE, _NATIVE_SHARES = (1.0, 0.75, 0.5, 0.375), [0.64, 0.17, 0.13, 0.06]

#: Shares of photos.
JPEG_SHARE, GREY_SHARE = 0.5, 0.03

# Exposure corrects the hand's mean luminance towards this value, with this power.
_EXPOSED, _EXPOSURE_POWER = 0.2, 0.4
_KERNEL = 7
_NOISE_SIDE = 512

# JPEG's example tables (ITU-T T.81, annex K) for luminance and chrominance.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *(99,) * 32,
)  # fmt: skip
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def exposed(light: Tensor, brightness: Tensor, draws: Draws) -> Tensor:
    """Convert linear light (B, 3, S, S) to light on the sensor, given the hand's mean `brightness` (B,)."""
    size = light.shape[-1]
    gain = (_EXPOSED / brightness.clamp(min=1e-3)) ** _EXPOSURE_POWER * torch.exp(0.5 * draws.normal() - 0.2)
    warm, green = 0.09 * draws.normal(), 0.03 * draws.normal() - 0.01
    balance = torch.exp(torch.stack([warm, green, -warm], 1))
    centre = (torch.arange(size, device=light.device) * 2 + 1) / size - 1
    shift = draws.uniform(2, low=-0.5, high=0.5)
    radius = (centre - shift[:, :1])[:, None] ** 2 + (centre - shift[:, 1:])[:, :, None] ** 2
    dimmed = 1 - (draws.uniform() ** 3 * 0.3)[:, None, None] * radius
    haze = (draws.uniform() ** 6 * 0.08)[:, None, None, None]
    return light * (gain[:, None] * balance)[:, :, None, None] * dimmed[:, None].clamp(min=0.1) + haze


def blurred_by_lens(light: Tensor, draws: Draws) -> Tensor:
    """Apply blur of lens and motion, and sharpening, as one kernel per photo."""
    count, channels, size = light.shape[:3]
    device = light.device
    unit = size / 128
    narrow = draws.uniform(low=0.35, high=0.75)
    defocus = torch.where(draws.chance(0.11), draws.uniform(low=0.4, high=1.8), 0.0)
    motion = torch.where(draws.chance(0.11), draws.uniform(low=0.8, high=2.4), 0.0)
    angle = draws.uniform(high=math.pi)
    across = ((narrow**2 + defocus**2).sqrt() * unit).clamp(min=0.3)
    along = ((narrow**2 + defocus**2 + motion**2).sqrt() * unit).clamp(min=0.3)
    taps = torch.arange(_KERNEL, device=device) - _KERNEL // 2
    x, y = taps[None, None], taps[None, :, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    distance = ((x * cos + y * sin) / along[:, None, None]) ** 2 + (
        (y * cos - x * sin) / across[:, None, None]
    ) ** 2
    kernel = torch.exp(-0.5 * distance)
    kernel = kernel / kernel.sum((1, 2), keepdim=True)
    wide = torch.exp(-0.5 * (x**2 + y**2) / (1.3 * unit) ** 2)
    wide = wide / wide.sum((1, 2), keepdim=True)
    sharpened = (draws.uniform(low=-0.5, high=0.7).clamp(min=0) * (motion + defocus == 0))[:, None, None]
    kernel = kernel * (1 + sharpened) - wide * sharpened
    edge = _KERNEL // 2
    padded = F.pad(light, (edge,) * 4, mode="replicate").view(1, count * channels, size + 2 * edge, -1)
    kernels = kernel[:, None].expand(-1, channels, -1, -1).reshape(count * channels, 1, _KERNEL, _KERNEL)
    return F.conv2d(padded, kernels, groups=count * channels).view_as(light)


def taken(sensed: Tensor, noise_bank: Tensor, draws: Draws) -> Tensor:
    """Convert light on the sensor (B, 3, S, S) to stored values in 0..1: tones, noise, resolution and JPEG."""
    size = sensed.shape[-1]
    contrast = torch.exp(0.06 + 0.14 * draws.normal(1, 1, 1))
    saturation = (torch.exp(0.15 + 0.17 * draws.normal()) * ~draws.chance(GREY_SHARE))[:, None, None, None]
    noise = draws.uniform(1, 1, 1) ** 3 * 0.035 + 0.003
    quality = draws.uniform(low=30, high=96)
    quality = torch.where(draws.chance(JPEG_SHARE), quality, 100.0)
    resolution = draws.choice(_NATIVE_SHARES)
    seeds = (draws.uniform() * 2**24).long()
    result = torch.empty_like(sensed)
    for k, share in enumerate(NATIVE):
        rows = (resolution == k).nonzero().squeeze(1)
        if not len(rows):
            continue
        side = max(round(size * share / 8) * 8, 8) if share < 1 else size
        part = sensed.index_select(0, rows)
        if side != size:
            part = F.interpolate(
                part, size=(side, side), mode="bilinear", align_corners=False, antialias=True
            )
        photo = stored(part.clamp(0, 1))
        photo = (photo - 0.45) * contrast[rows] + 0.45
        grey = photo.mean(1, keepdim=True)
        photo = grey + (photo - grey) * saturation[rows]
        own = Draws(draws.key[rows] ^ seeds[rows])
        # Luminance noise is fine, colour noise coarse; both are strongest in the dark.
        half = -(-side // 2)
        coarse = F.interpolate(_cut(noise_bank, half, own.uniform(3, 2)), size=(side, side), mode="nearest")
        grain = torch.add(_cut(noise_bank, side, own.uniform(1, 2)), coarse, alpha=0.5)
        photo = photo + grain * (noise[rows] * (1.25 - grey.clamp(0, 1)))
        photo = photo.clamp(0, 1)
        coded = (quality[rows] < 100).nonzero().squeeze(1)
        if len(coded) and side >= 8:
            photo[coded] = jpeg(photo.index_select(0, coded), quality[rows][coded])
        if side != size:
            photo = F.interpolate(photo, size=(size, size), mode="bilinear", align_corners=False)
        result[rows] = photo
    return result


def noise_bank(seed: int, device: torch.device) -> Tensor:
    """Return white noise (_NOISE_SIDE, _NOISE_SIDE) of unit variance; cutting pieces is faster than drawing noise."""
    return Draws(keys(seed, 16)).normal(_NOISE_SIDE, _NOISE_SIDE)[0].to(device)


def _cut(bank: Tensor, side: int, at: Tensor) -> Tensor:
    """Cut squares (B, C, side, side) from a repeating bank at positions `at` (B, C, 2) in 0..1."""
    way = torch.arange(side, device=bank.device)
    row, column = ((at[..., k, None] * len(bank)).long() + way for k in range(2))
    index = (row % len(bank) * len(bank))[..., None] + (column % len(bank))[..., None, :]
    return bank.view(-1).index_select(0, index.view(-1)).view(index.shape)


def jpeg(photos: Tensor, quality: Tensor) -> Tensor:
    """Return photos (B, 3, S, S) in 0..1 after JPEG of a quality (B,), with colour at half resolution."""
    size, device = photos.shape[-1], photos.device
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    to_ycc = torch.tensor(_YCC, device=device)
    ycc = torch.einsum("ij,bjhw->bihw", to_ycc, photos) * 255
    side = -(-size // 16) * 16
    ycc = F.pad(ycc, (0, side - size, 0, side - size), mode="replicate") if side != size else ycc
    luma = _coded(ycc[:, :1] - 128, scale, torch.tensor(_LUMA, device=device)) + 128
    chroma = _coded(F.avg_pool2d(ycc[:, 1:], 2), scale, torch.tensor(_CHROMA, device=device))
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    back = torch.linalg.inv(to_ycc)
    rgb = torch.einsum("ij,bjhw->bihw", back, torch.cat([luma, chroma], 1))
    return (rgb[..., :size, :size] / 255).clamp(0, 1)


def _coded(planes: Tensor, scale: Tensor, table: Tensor) -> Tensor:
    """Encode and decode planes (B, C, H, W) in 8 x 8 blocks of rounded cosine coefficients."""
    count, channels, height, width = planes.shape
    k = torch.arange(8, device=planes.device, dtype=planes.dtype)
    cosine = torch.cos((2 * k[None] + 1) * k[:, None] * (math.pi / 16)) / 2
    cosine[0] /= math.sqrt(2)
    both = torch.kron(cosine, cosine)  # (64 coefficients, 64 pixels), orthogonal
    blocks = (
        planes.view(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4).reshape(count, -1, 64)
    )
    step = (table * scale[:, None]).clamp(1, 255)[:, None]
    blocks = ((blocks @ both.T / step).round() * step) @ both
    return blocks.view(count, channels, height // 8, width // 8, 8, 8).transpose(3, 4).reshape_as(planes)
