"""The probability that each joint is visible. Not in the paper.

A joint may be hidden by an object, by the hand itself or by the photo's edge. The head reads the global feature, and
the backbone's maps at each landmark. Its inputs carry no gradient, so it changes no other output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from annotator.hand.model import HandModel
from annotator.model.attention import FeatureMap, Tokens, zero_start

#: Width of the token of a joint.
WIDTH = 64


class JointVisibility(nn.Module):
    """Map g (B, feature_dim) and maps of `map_dims` channels to a logit per joint (B, 21); 0 before training."""

    def __init__(self, feature_dim: int, hand: HandModel, map_dims: Sequence[int]) -> None:
        super().__init__()
        joints = torch.as_tensor(hand.joint_regressor @ hand.v_template)
        positions = (joints - joints[:1]) * 10  # decimetres from the wrist, as in AMVUR
        self.tokens = Tokens(
            feature_dim, positions, WIDTH, "template", posed_dim=2, plain=False, map_dims=map_dims
        )
        self.logit = zero_start(nn.Linear(WIDTH, 1))

    def forward(self, g: Tensor, joints2d: Tensor, maps: Sequence[FeatureMap]) -> Tensor:
        """Return the logits (B, 21), from joints2d (B, 21, 2) in crop coordinates, where maps are sampled."""
        points = joints2d.detach()
        maps = [FeatureMap(level.values.detach(), level.in_map) for level in maps]
        return self.logit(gelu(self.tokens(g.detach(), points, points, maps))).squeeze(-1)
