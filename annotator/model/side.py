"""Which hand it is: a linear read-out of the global feature, not in the paper.

The network knows right hands only; a left hand is mirrored before it is predicted. Where neither a detector
nor a list says which it is, this head does. It is trained on photos and their mirror images alike.
"""

from __future__ import annotations

from torch import Tensor, nn


class SideHead(nn.Module):
    """g (B, feature_dim) to the probability that the crop shows a right hand, (B,); 0.5 before training."""  # noqa: D403

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_dim, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, g: Tensor) -> Tensor:
        """G (B, feature_dim) -> (B,) in 0..1."""
        return self.linear(g).float().squeeze(-1).sigmoid()
