"""Attention over tokens, formulas (9) and (10): `softmax(Q K^T / sqrt(d)) U`, its blocks, and the tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, scaled_dot_product_attention

from annotator.render import reverse_interpolate

#: Width of a block's feed-forward layer, in widths of its tokens.
FEED_FORWARD = 2

#: Octaves of sines in the positional encoding, from one wave per 20 cm to one per 2.5 cm: half a finger's width.
OCTAVES = 4

#: Cells of a map per point up to which a layer is faster on the map than on its samples, measured at 1,152 channels.
CELLS_PER_POINT = 2.5

#: Whether layers of tokens are convolutions on this machine's CPU.
CONVOLVES = torch.backends.cpu.get_cpu_capability() == "AVX512"


def zero_start(linear: nn.Linear) -> nn.Linear:
    """Set a layer to zero, so that a sum with its output starts unchanged, and return it."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class TokenLinear(nn.Linear):
    """A linear layer on tokens (B, N, width).

    On a CPU with AVX-512 it is a convolution of one pixel, without copies. Forward and backward it takes half the time
    of torch's matrix product on AMD's CPUs, where MKL does not use AVX-512. Without AVX-512 both are equally fast
    forward, but the convolution's backward takes half as long again.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, in_features) -> (B, N, out_features)."""
        if not CONVOLVES or tokens.ndim != 3 or tokens.device.type != "cpu" or tokens.dtype == torch.float64:
            return super().forward(tokens)
        columns = tokens[:, :, None].permute(0, 3, 1, 2)  # (B, in_features, N, 1), channels last
        return conv2d(columns, self.weight[..., None, None], self.bias).permute(0, 2, 3, 1)[:, :, 0]


class FeatureMap(NamedTuple):
    """A map of crops, and how points of the crop find their position in it."""

    values: Tensor  # (B, C, H, W)
    in_map: Callable[[Tensor], Tensor]  # crop points (..., 2) to coordinates of `reverse_interpolate`


class Attention(nn.Module):
    """Attend from one set of tokens (B, N, width) to another (B, M, width), with `heads` heads.

    Return (B, N, width) without the residual, which the caller adds. With `output` a linear layer mixes the heads.
    """

    def __init__(self, width: int, heads: int = 1, output: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = TokenLinear(width, width)
        self.key = TokenLinear(width, width)
        self.value = TokenLinear(width, width)
        self.output = TokenLinear(width, width) if output else nn.Identity()

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Map queries (B, N, width), keys and values (B, M, width) -> (B, N, width)."""
        q, k, u = (
            projection(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, tokens in ((self.query, queries), (self.key, keys), (self.value, keys))
        )
        return self.output(scaled_dot_product_attention(q, k, u).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Update vertex tokens once: cross-attention (9), self-attention (10), feed-forward, each with a residual.

    Each step first normalises its input (Xiong et al., "On layer normalization in the transformer architecture", 2020).
    `plain` omits normalisation and feed-forward: the formulas as written.
    """

    def __init__(self, width: int, heads: int, cross: bool, within: bool, plain: bool) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return nn.Identity() if plain else nn.LayerNorm(width)

        self.cross = Attention(width, heads, output=not plain) if cross else None
        self.self_attention = Attention(width, heads, output=not plain) if within else None
        if cross:
            self.cross_norm, self.joint_norm = norm(), norm()
        if within:
            self.self_norm = norm()
        self.expand: TokenLinear | None = None
        if not plain:
            self.feed_norm = norm()
            self.expand = TokenLinear(width, FEED_FORWARD * width)
            self.contract = TokenLinear(FEED_FORWARD * width, width)

    def forward(self, vertices: Tensor, joints: Tensor | None) -> Tensor:
        """Map vertex tokens F_V (B, T, width) and joint tokens F_J (B, 21, width) to F'' (B, T, width)."""
        if self.cross is not None and joints is not None:
            vertices = vertices + self.cross(self.cross_norm(vertices), self.joint_norm(joints))  # (9)
        if self.self_attention is not None:
            normed = self.self_norm(vertices)
            vertices = vertices + self.self_attention(normed, normed)  # (10)
        if self.expand is not None:
            vertices = vertices + self.contract(gelu(self.expand(self.feed_norm(vertices))))
        return vertices


class Tokens(nn.Module):
    """Make N tokens from the global feature `g` and each token's position on the hand.

    Plain tokens are the paper's `W [g ; p_i]`. As `g` is the same for all, `W [g ; p] = W_g g + W_p p` costs one
    product with `g`, not N. A sum can't express a product of `g` and position, which a rotation of the whole hand
    needs. So the other tokens are `W_g g + (1 + W_m g) * embed(p_i)`. `embed` is a small network on sines of the
    template's positions: neighbouring fingers are a centimetre apart and move independently.

    `positional`: "template" uses the positions (N, 3); "index" learns one vector per token. Each photo may add
    `posed_dim` numbers per token. `map_dims` are the channels of the feature maps that are sampled at the points
    where tokens project into the crop.
    """

    positions: Tensor  # (N, 3), or (N, 3 + 6 * OCTAVES) encoded

    def __init__(
        self,
        feature_dim: int,
        positions: Tensor,
        width: int,
        positional: str,
        posed_dim: int = 0,
        plain: bool = True,
        map_dims: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.plain = plain
        self.from_feature = nn.Linear(feature_dim, width)
        self.from_posed = nn.Linear(posed_dim, width, bias=False) if posed_dim else None
        if positional == "template":
            positions = positions if plain else encoded(positions)
            self.register_buffer("positions", positions, persistent=False)
            self.from_place: nn.Linear | None = nn.Linear(positions.shape[1], width, bias=False)
        else:
            self.from_place = None
            self.index = nn.Parameter(torch.randn(len(positions), width) * 0.02)
        if not plain:
            self.embed = nn.Sequential(
                nn.GELU(), TokenLinear(width, width), nn.GELU(), TokenLinear(width, width)
            )
            self.gate = nn.Linear(feature_dim, width)
        self.from_maps = nn.ModuleList(nn.Linear(dim, width, bias=False) for dim in map_dims)

    def forward(
        self,
        g: Tensor,
        posed: Tensor | None = None,
        points: Tensor | None = None,
        maps: Sequence[FeatureMap] = (),
    ) -> Tensor:
        """Return tokens (B, N, width).

        Args:
            g: (B, feature_dim).
            posed: (B, N, posed_dim) positions in each photo, magnitude about 1; required with `posed_dim`.
            points: (B, N, 2) projections of the tokens, crop coordinates; required with `map_dims`.
            maps: sampled at `points`.
        """
        position = self.index if self.from_place is None else self.from_place(self.positions)
        if self.from_posed is not None and posed is not None:
            position = position + self.from_posed(posed)
        if not self.plain:
            position = self.embed(position) * (1 + self.gate(g)[:, None])
        tokens = self.from_feature(g)[:, None] + position
        if self.from_maps and points is not None:
            for layer, features in zip(self.from_maps, maps, strict=True):
                assert isinstance(layer, nn.Linear)
                tokens = tokens + _sampled(layer, features, points)
        return tokens


def _sampled(layer: nn.Linear, features: FeatureMap, points: Tensor) -> Tensor:
    """Return the layer's output (B, N, width) for a map's values at points (B, N, 2).

    Sampling and a layer without bias are both linear in the map, so the cheaper order is taken.
    """
    values, positions = features.values.float(), features.in_map(points)
    if values[0, 0].numel() > CELLS_PER_POINT * points.shape[1]:
        sampled: Tensor = layer(reverse_interpolate(values, positions))
        return sampled
    if values.device.type == "cpu":  # a convolution copies nothing
        return reverse_interpolate(conv2d(values, layer.weight[..., None, None]), positions)
    # By default, GPUs round the inputs of convolutions to ten bits, those of products to none.
    cells = values.permute(0, 2, 3, 1) @ layer.weight.T
    return reverse_interpolate(cells.permute(0, 3, 1, 2), positions)


def encoded(positions: Tensor) -> Tensor:
    """Encode positions (N, 3), decimetres, with sines and cosines of `OCTAVES` frequencies: (N, 3 + 6 * OCTAVES)."""
    angles = torch.cat([math.pi * 2.0**octave * positions for octave in range(OCTAVES)], -1)
    return torch.cat([positions, angles.sin(), angles.cos()], -1)
