"""The position of each joint in the crop, and the image features at it. Not in the paper.

Pooling a feature map into `g` discards positions, and a network without them needs far more photos. So 21 maps
locate the joints (soft-argmax, Sun et al., "Integral human pose regression", 2018). Positions, and features averaged
with the same maps, are appended to `g`. They are trained on 2D joints, which real photos have too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotator.hand.model import JOINT_COUNT

#: Channels to which all maps of the pyramid are projected.
WIDTH = 64

#: Numbers kept of the features at each joint.
LOCAL = 16


class LandmarkHead(nn.Module):
    """Map a backbone's pyramid over the crop to 21 positions and a feature of `size` numbers.

    Coarse maps identify the joint, the fine map locates it. Each is projected to `WIDTH` channels at the fine map's
    size, and they are summed (Lin et al., "Feature pyramid networks", 2017). The position of a cell is the middle of
    its share of the crop. The backbones' padding shifts its receptive field by up to half a cell (see
    `Backbone.forward`). The shift is constant, so training compensates it.
    """

    def __init__(self, dims: tuple[int, int, int]) -> None:
        super().__init__()
        self.size = JOINT_COUNT * (2 + LOCAL)
        self.levels = nn.ModuleList(nn.Conv2d(dim, WIDTH, 1) for dim in dims)
        self.maps = nn.Conv2d(WIDTH, JOINT_COUNT, 1, bias=False)  # a bias would change no share
        self.local = nn.Conv2d(WIDTH, LOCAL, 1)

    def forward(self, pyramid: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps (B, 21, H, W), positions (B, 21, 2) in the crop, and the feature (B, size).

        Maps are the log of each cell's share; shares sum to 1.
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
        positions = share @ centres
        local = share @ self.local(features).flatten(2).transpose(1, 2)  # (B, 21, LOCAL)
        feature = torch.cat([positions, local], -1).flatten(1)
        return log_share.unflatten(2, (height, width)), positions, feature
