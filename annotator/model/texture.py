"""Occlusion-aware hand texture regression (section 3.4).

The mesh is rasterized; triangles that win a pixel make their vertices visible. Reverse interpolation carries
features from pixels to vertices. Visibility prevents a hidden vertex from taking the colour of the surface that
covers it:

    f_i = [ bilinear(X, proj(v_i)) * visible_i ; g ]     (11)

Self-attention (10) fills in hidden vertices, and an MLP gives RGB.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from annotator.config import TextureConfig
from annotator.hand.model import HandModel
from annotator.hand.regressor import farthest_points
from annotator.model.attention import Attention, TokenLinear, Tokens, zero_start
from annotator.render import Covered, cover, reverse_interpolate

#: Steps of `fit_colours`. On 32 photos at 96 px, PSNR of the painted mesh: 34.2 dB after no step, 37.5 after one, 38.1
#: after two, 38.4 after four, 38.6 after eight. Two steps take 0.6 ms per photo there on one CPU core.
FIT_STEPS = 2

#: Weight, in pixels, below which a vertex keeps its colour.
MIN_WEIGHT = 0.01


@torch.no_grad()
def fit_colours(colours: Tensor, images: Tensor, coverage: Covered, size_px: int) -> Tensor:
    """Return colours (B, V, 3), fitted so that the painted mesh looks more like the photo.

    A colour sampled at a vertex is that of one noisy pixel, but its triangles cover several pixels. Each step paints
    the mesh and moves every colour by the mean residual of the pixels around it. This simultaneous iteration (Gilbert,
    1972) converges to a least-squares fit. Vertices outside all pixels keep their colour. `images` (B, 3, S, S) are
    resized to `size_px`, the size of the coverage.
    """
    photo = _resized(images, size_px).index_select(0, coverage.pixel)
    fitted = colours.reshape(-1, 3)
    weight = coverage.collect(torch.ones_like(photo[:, :1]), len(fitted))
    rate = torch.where(weight > MIN_WEIGHT, 1 / weight.clamp_min(MIN_WEIGHT), 0.0)
    for _ in range(FIT_STEPS):
        fitted = fitted + rate * coverage.collect(photo - coverage.paint(fitted), len(fitted))
    return fitted.reshape(colours.shape).clamp(0, 1)


def _resized(images: Tensor, size_px: int) -> Tensor:
    """Return the pixels (B * size_px * size_px, 3) of images (B, 3, S, S), resized bilinearly with antialiasing."""
    small = interpolate(images, size=size_px, mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1).reshape(-1, 3)


class OcclusionAwareTexture(nn.Module):
    """Formula (11), self-attention, MLP: one colour per vertex.

    Two small departures from the paper. The token also holds its vertex's position on the hand; otherwise the tokens
    of all hidden vertices would be equal. With `config.photo_colour` colours are also sampled from the photo itself
    and fitted to it, and the MLP corrects them. So even untrained weights show the photo's skin colour.
    """

    keys: Tensor  # (T,) vertices that attention reads

    def __init__(self, feature_dim: int, shallow_dim: int, hand: HandModel, config: TextureConfig) -> None:
        super().__init__()
        self.photo_colour = config.photo_colour
        width = config.width
        template = torch.as_tensor(hand.v_template)
        positions = (template - template.mean(0)) * 10
        self.tokens = Tokens(feature_dim, positions, width, "template")
        self.from_pixels = TokenLinear(shallow_dim + 3 * config.photo_colour, width)
        self.self_attention = Attention(width)
        keys = farthest_points(
            hand.v_template,
            min(config.tokens or hand.vertex_count, hand.vertex_count),
            hand.tip_vertices.tolist(),
        )
        self.register_buffer("keys", torch.as_tensor(keys), persistent=False)
        self.colour = nn.Sequential(TokenLinear(width, width), nn.ReLU(), zero_start(TokenLinear(width, 3)))

    def forward(
        self,
        images: Tensor,
        X: Tensor,
        g: Tensor,
        points: Tensor,
        points_in_X: Tensor,
        visible: Tensor,
        face_ids: Tensor,
        faces: Tensor,
    ) -> Tensor:
        """Return colours (B, V, 3) in 0..1.

        Args:
            images: (B, 3, H, W) RGB in 0..1.
            X: (B, shallow_dim, H', W').
            g: (B, feature_dim).
            points: (B, V, 3) projected vertices, crop coordinates.
            points_in_X: (B, V, 2), the same in X.
            visible: (B, V) bool.
            face_ids: (B, S, S) nearest face per pixel, at any size S.
            faces: (F, 3).
        """
        positions = points[..., :2]
        mask = visible[..., None].to(X.dtype)
        pixels = reverse_interpolate(X, points_in_X) * mask
        logits = torch.zeros_like(pixels[..., :3])
        if self.photo_colour:
            coverage = cover(points, faces, face_ids)
            photo = fit_colours(reverse_interpolate(images, positions), images, coverage, face_ids.shape[-1])
            photo = photo * mask
            pixels = torch.cat([pixels, photo], -1)
            # A hidden vertex starts from the mean colour of visible ones; from grey if no vertex is visible.
            mean_visible = (photo.sum(1, keepdim=True) + 0.5e-3) / (mask.sum(1, keepdim=True) + 1e-3)
            logits = (photo + mean_visible * (1 - mask)).clamp(0.01, 0.99).logit()
        features = self.tokens(g) + self.from_pixels(pixels)
        features = features + self.self_attention(features, features[:, self.keys])
        return (logits + self.colour(features).float()).sigmoid()


class GlobalTexture(nn.Module):
    """Predict colours from the global feature alone, ignoring occlusion: HAND in Table 6."""

    def __init__(self, feature_dim: int, hand: HandModel, width: int = 512) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(feature_dim, width), nn.ReLU(), nn.Linear(width, hand.vertex_count * 3)
        )

    def forward(self, g: Tensor) -> Tensor:
        """Map g (B, feature_dim) -> (B, V, 3) in 0..1."""
        return self.mlp(g).float().sigmoid().unflatten(-1, (-1, 3))
