"""Linear read-outs of the global feature for the side and presence of a hand. Not in the paper.

Side: the network predicts right hands only; a left hand is mirrored first. If neither a detector nor a list gives the
side, this read-out does. It is trained on photos and their mirror images. Presence: trained on photos and on crops
without a hand, so that labels of crops without a hand can be recognised.
"""

from __future__ import annotations

from torch import Tensor, nn

from annotator.model.attention import zero_start


class ReadOut(nn.Module):
    """Map the global feature (B, feature_dim) to a probability (B,); 0.5 before training."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.linear = zero_start(nn.Linear(feature_dim, 1))

    def forward(self, g: Tensor) -> Tensor:
        """Map g (B, feature_dim) -> (B,) in 0..1."""
        return self.linear(g).float().squeeze(-1).sigmoid()
