"""One attention step of formulas (9) and (10): `softmax(Q K^T / sqrt(d)) U`, and the token it works on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def zero_start(linear: nn.Linear) -> nn.Linear:
    """Zero a layer, so that what it is added to stays what it was until training says otherwise."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Attention(nn.Module):
    """Queries from one set of tokens (B, N, width), keys and values from another (B, M, width).

    Returns (B, N, width) without the residual, which the caller adds. `heads` = 1 is the paper's.
    """

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, asking: Tensor, asked: Tensor) -> Tensor:
        """Asking (B, N, width), asked (B, M, width) -> (B, N, width)."""
        q, k, u = (
            projection(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, tokens in ((self.query, asking), (self.key, asked), (self.value, asked))
        )
        return scaled_dot_product_attention(q, k, u).transpose(1, 2).flatten(2)


class Tokens(nn.Module):
    """`W [g ; p_i]` for N tokens that share `g`, where p_i is the token's place on the hand.

    `g` is the same for all tokens, so `W [g ; p] = W_g g + W_p p` costs one product with `g`, not N.
    `positional`: "template" takes the place's coordinates (N, 3); "index" learns one vector a token. With `posed`,
    each photo brings places of its own beside them.
    """

    places: Tensor  # (N, 3)

    def __init__(
        self, feature_dim: int, places: Tensor, width: int, positional: str, posed: bool = False
    ) -> None:
        super().__init__()
        self.from_feature = nn.Linear(feature_dim, width)
        self.from_posed = nn.Linear(3, width, bias=False) if posed else None
        if positional == "template":
            self.register_buffer("places", places, persistent=False)
            self.from_place: nn.Linear | None = nn.Linear(3, width, bias=False)
        else:
            self.from_place = None
            self.index = nn.Parameter(torch.randn(len(places), width) * 0.02)

    def forward(self, g: Tensor, posed: Tensor | None = None) -> Tensor:
        """G (B, feature_dim) and, if so made, places (B, N, 3) -> (B, N, width)."""
        place = self.index if self.from_place is None else self.from_place(self.places)
        if self.from_posed is not None and posed is not None:
            place = place + self.from_posed(posed)
        return self.from_feature(g)[:, None] + place
