"""Colour conversion: CIE Lab, in which skin is measured, to linear light, and light to stored sRGB."""

from __future__ import annotations

import torch
from torch import Tensor

_WHITE_D65 = (0.95047, 1.0, 1.08883)
_RGB_FROM_XYZ = (
    (3.2404542, -1.5371385, -0.4985314),
    (-0.9692660, 1.8760108, 0.0415560),
    (0.0556434, -0.2040259, 1.0572252),
)


def lab_to_linear(lab: Tensor) -> Tensor:
    """Convert CIE Lab under D65 (..., 3) to linear RGB (..., 3) in 0..1."""
    lightness, a, b = lab.unbind(-1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], -1)
    share = torch.where(f > 6 / 29, f * f * f, (f - 4 / 29) * (3 * (6 / 29) ** 2))
    to_rgb = torch.tensor(_RGB_FROM_XYZ, dtype=lab.dtype, device=lab.device)
    return (share @ (to_rgb * torch.tensor(_WHITE_D65, dtype=lab.dtype, device=lab.device)).T).clamp(0, 1)


def stored(linear: Tensor) -> Tensor:
    """Convert linear light in 0..1 to sRGB values in 0..1, accurate to half a grey level.

    Square roots approximate the power 1/2.4, five times faster on a CPU.
    """
    root = linear.clamp(min=0).sqrt()
    fourth = root.sqrt()
    curve = 0.585122381 * root + 0.783140355 * fourth - 0.368262736 * fourth.sqrt()
    return torch.where(linear <= 0.0031308, linear * 12.92, curve)
