"""Eight-bit convolutions: which ones, the grid of their weights, and the ranges of their inputs. Not in the paper.

The weights that ship lie on this grid: per output channel, whole multiples, from -127 to 127, of a 127th of the largest
weight. So eight bits hold them without loss, and only the rounding of inputs distinguishes int8 from float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from annotator.model.backbone import Backbone

#: Input range of each quantised convolution, by its name in the backbone: lowest and highest value.
Ranges = Mapping[str, tuple[float, float]]

#: Levels of weights on each side of zero, and of inputs.
WEIGHT_LEVELS, INPUT_LEVELS = 127, 256

#: Convolutions at strides 1 and 2 stay in float32. Rounding them moves vertices more than all others together.
_FLOAT32 = ("conv_stem", "blocks.0.", "blocks.1.0.")

#: Shares of the full range that `measure_ranges` tries; a narrower one cuts rare values and rounds the others less.
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)

#: Values per convolution and batch of images by which the share is chosen.
_SAMPLES = 20_000


def quantised_convolutions(backbone: Backbone) -> dict[str, nn.Conv2d]:
    """Return the convolutions of an EfficientNet that may run in int8, by name."""
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and not name.startswith(_FLOAT32)
    }


def grid_step(weight: Tensor) -> Tensor:
    """Return the distance (C, 1, 1, 1) between levels of a convolution's weights (C, ...)."""
    return weight.detach().abs().flatten(1).amax(1).clamp_min(1e-9).view(-1, 1, 1, 1) / WEIGHT_LEVELS


def round_to_grid(weight: Tensor) -> Tensor:
    """Return the nearest weights on the grid; the gradient passes as if nothing was rounded."""
    step = grid_step(weight)
    return weight + ((weight.detach() / step).round() * step - weight.detach())


@torch.no_grad()
def measure_ranges(backbone: Backbone, images: Tensor) -> dict[str, tuple[float, float]]:
    """Return the input range of each quantised convolution with the least squared rounding error on these images."""
    recorded: dict[str, list[Tensor]] = {}
    ends: dict[str, tuple[float, float]] = {}
    chance = torch.Generator().manual_seed(0)

    def register_hook(name: str) -> torch.utils.hooks.RemovableHandle:
        def record(_: nn.Module, inputs: tuple[Tensor]) -> None:
            values = inputs[0].flatten()
            low, high = ends.get(name, (0.0, 0.0))  # zero must be a level: padding
            ends[name] = min(low, float(values.min())), max(high, float(values.max()))
            recorded.setdefault(name, []).append(
                values[torch.randint(len(values), (_SAMPLES,), generator=chance)]
            )

        return convolutions[name].register_forward_pre_hook(record)

    convolutions = quantised_convolutions(backbone)
    hooks = [register_hook(name) for name in convolutions]
    for part in images.split(16):
        backbone(part)
    for hook in hooks:
        hook.remove()
    return {name: best_range(torch.cat(values), *ends[name]) for name, values in recorded.items()}


def best_range(values: Tensor, low: float, high: float) -> tuple[float, float]:
    """Return the part of a range of values (n,) with the least squared rounding error."""

    def error(ends: tuple[float, float]) -> float:
        return float((rounded(values, *ends) - values).square().mean())

    return min((_with_zero(share * low, share * high) for share in _SHARES), key=error)


def _with_zero(low: float, high: float) -> tuple[float, float]:
    """Return the range moved by less than a step, so that zero is one of its levels."""
    step = max(high - low, 1e-9) / (INPUT_LEVELS - 1)
    zero = round(-low / step)
    return -zero * step, (INPUT_LEVELS - 1 - zero) * step


def rounded(values: Tensor, low: float, high: float) -> Tensor:
    """Return values as a convolution in int8 gets them."""
    step = (high - low) / (INPUT_LEVELS - 1)
    return ((values - low) / step).round().clamp(0, INPUT_LEVELS - 1) * step + low
