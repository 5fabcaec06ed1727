"""Where in the crop each joint seems to lie, and what the photo looks like there: not in the paper.

Pooling a feature map into `g` throws places away, and a network that must find them again in what is left wants far
more photos. So 21 maps say where each joint is (soft-argmax, Sun et al., "Integral human pose regression", 2018), and
the features there, weighted by the same maps, join `g`. Learnt from 2D joints, which real photos have too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Joints with a map of their own.
JOINTS = 21

#: Channels in which the maps of the pyramid meet.
WIDTH = 64

#: Numbers kept of the features at each joint.
LOCAL = 16


class Landmarks(nn.Module):
    """A backbone's pyramid over the crop to 21 places and a feature of `size` numbers.

    What joint a cell shows is known to the coarse maps, where exactly to the fine one: each becomes `WIDTH` channels of
    the fine one's size, and they are added up (Lin et al., "Feature pyramid networks", 2017). A cell is taken to lie in
    the middle of its share of the crop. With the backbones' padding it looks up to half a cell beside that (see
    `Backbone.forward`), always the same way, which the maps learn with the rest.
    """

    def __init__(self, dims: tuple[int, int, int]) -> None:
        super().__init__()
        self.size = JOINTS * (2 + LOCAL)
        self.levels = nn.ModuleList(nn.Conv2d(dim, WIDTH, 1) for dim in dims)
        self.maps = nn.Conv2d(WIDTH, JOINTS, 1, bias=False)  # a bias would change no share
        self.local = nn.Conv2d(WIDTH, LOCAL, 1)

    def forward(self, pyramid: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps (B, 21, H, W), places (B, 21, 2) in the crop, and the feature (B, size).

        Maps are the log of each cell's share; shares add up to 1.
        """
        height, width = pyramid[0].shape[-2:]
        levels = [level(features.float()) for level, features in zip(self.levels, pyramid, strict=True)]
        coarse = [F.interpolate(x, size=(height, width), mode="bilinear") for x in levels[1:]]
        features = F.relu(levels[0] + coarse[0] + coarse[1])
        log_share = self.maps(features).flatten(2).log_softmax(-1)  # (B, 21, H * W)
        share = log_share.exp()
        x = (torch.arange(width, device=features.device) * 2 + 1) / width - 1
        y = (torch.arange(height, device=features.device) * 2 + 1) / height - 1
        centres = torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)  # (H * W, 2)
        places = share @ centres
        local = share @ self.local(features).flatten(2).transpose(1, 2)  # (B, 21, LOCAL)
        feature = torch.cat([places, local], -1).flatten(1)
        return log_share.unflatten(2, (height, width)), places, feature
