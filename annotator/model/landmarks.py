"""Where in the crop each joint seems to lie, and what the photo looks like there: not in the paper.

Pooling a feature map into `g` throws places away, and a network that must find them again in what is left wants far
more photos. So 21 maps say where each joint is (soft-argmax, Sun et al., "Integral human pose regression", 2018), and
the features there, weighted by the same maps, join `g`. Learnt from 2D joints, which real photos have too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

#: Joints with a map of their own.
JOINTS = 21

#: Numbers kept of the features at each joint.
LOCAL = 16


class Seen(NamedTuple):
    """Where the joints of B hands are seen."""

    places: Tensor  # (B, 21, 2) crop coordinates, the maps' means: never beyond the outermost cells' centres
    log_share: Tensor  # (B, 21, H, W) log of each cell's share; shares of a map add up to 1


class Landmarks(nn.Module):
    """Feature map (B, channels, H, W) over the crop to 21 places and a feature of `size` numbers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.size = JOINTS * (2 + LOCAL)
        self.maps = nn.Conv2d(channels, JOINTS, 1)
        self.local = nn.Conv2d(channels, LOCAL, 1)

    def forward(self, features: Tensor) -> tuple[Seen, Tensor]:
        """Where joints are seen, and the feature (B, size)."""
        log_share = self.maps(features).float().flatten(2).log_softmax(-1)  # (B, 21, H * W)
        share = log_share.exp()
        height, width = features.shape[-2:]
        x = (torch.arange(width, device=features.device) * 2 + 1) / width - 1
        y = (torch.arange(height, device=features.device) * 2 + 1) / height - 1
        centres = torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)  # (H * W, 2)
        places = share @ centres
        local = share @ self.local(features).float().flatten(2).transpose(1, 2)  # (B, 21, LOCAL)
        return Seen(places, log_share.unflatten(2, (height, width))), torch.cat([places, local], -1).flatten(
            1
        )
