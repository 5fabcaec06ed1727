"""Questions about a crop that have a yes and a no, not in the paper: linear read-outs of the global feature.

Is it a right hand? The network knows right hands only; a left hand is mirrored before it is predicted. Where neither
a detector nor a list says which it is, this is asked, taught by photos and their mirror images alike. Is it a hand at
all? Taught by photos and by crops without one, so that what is said of a wall can be told from what is said of a hand.
"""

from __future__ import annotations

from torch import Tensor, nn

from annotator.model.attention import zero_start


class ReadOut(nn.Module):
    """Global feature (B, feature_dim) to the probability of a yes, (B,); 0.5 before training."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.linear = zero_start(nn.Linear(feature_dim, 1))

    def forward(self, g: Tensor) -> Tensor:
        """G (B, feature_dim) -> (B,) in 0..1."""
        return self.linear(g).float().squeeze(-1).sigmoid()
