"""Which hand it is: a linear read-out of the global feature, not in the paper.

The network knows right hands only; a left hand is mirrored before it is predicted. Where neither a detector
nor a list says which it is, this head does. It is trained on photos and their mirror images alike.
"""

from __future__ import annotations

from torch import Tensor, nn

from annotator.model.attention import zero_start


class SideHead(nn.Module):
    """Global feature (B, feature_dim) to the probability of a right hand, (B,); 0.5 before training."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.linear = zero_start(nn.Linear(feature_dim, 1))

    def forward(self, g: Tensor) -> Tensor:
        """G (B, feature_dim) -> (B,) in 0..1."""
        return self.linear(g).float().squeeze(-1).sigmoid()
