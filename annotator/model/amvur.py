"""AMVUR (section 3.3), the model-free half: mean and std of each vertex, here turned into millimetres.

The name is short for attention-based mesh vertices uncertainty regression.

`attention.Block` computes (9) and (10); this file makes the tokens and reads out vertices.

Token of vertex i: `[g ; v0_i]`, of joint k: `[g ; j0_k]`, where v0 and j0 are the template at zero pose and
shape (the positional encoding). Vertices attend to joints, then to each other, each with a residual:

    A = softmax(Q_V K_J^T / sqrt(d)),   F'  = A U_J  + F_V      (9)
    S = softmax(Q_F' K_F'^T / sqrt(d)), F'' = S U_F' + F'       (10)

Each block does both once. A stage is several blocks of one width; each next stage has a quarter of that width, as in
the authors' network. Two MLPs give mu_V and log sigma_V^2 of q(V | I) = N(mu_V, sigma_V^2). Joints follow through R:
mu_J = R mu_V and sigma_J^2 = (R * R) sigma_V^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from annotator.config import AmvurConfig
from annotator.hand.layer import HandLayer
from annotator.hand.model import HandModel
from annotator.hand.regressor import coarse_tokens
from annotator.model.attention import Block, FeatureMap, TokenLinear, Tokens, zero_start
from annotator.model.prior_net import mean_hand

#: Std of an untrained network; the mean hand is about this far off.
START_STD_MM = 20.0

#: A distance from a landmark, a tenth of a crop's half-side, becomes a number of about 1.
RESIDUAL_SCALE = 10.0


@dataclass
class Gaussian:
    """N(mean, std^2) per coordinate, millimetres, crop axes, wrist-relative."""

    mean_mm: Tensor  # (B, N, 3)
    std_mm: Tensor  # (B, N, 3)


def combined(weights: Tensor, points: Tensor) -> Tensor:
    """Multiply `weights` (M, N) by points (B, N, 3) -> (B, M, 3), all photos in one product."""
    # The copy is cheap. On a view torch makes one small product per photo.
    return nn.functional.linear(points.transpose(1, 2).contiguous(), weights).transpose(1, 2)


def joints_from_vertices(vertices: Gaussian, R: Tensor, joint_variance: str) -> Gaussian:
    """Return q(J3 | I) from q(V | I): mean R mu_V, variance (R * R) sigma_V^2 (section 3.1).

    The paper's variance ("independent") treats errors of neighbouring vertices as independent. It comes out about
    half as large as the real errors. "shared" treats them as one common error, scaled per vertex:
    sigma_J = |R sigma_V|.
    """
    if joint_variance == "independent":
        variance = combined(R.square(), vertices.std_mm.square())
        return Gaussian(combined(R, vertices.mean_mm), variance.clamp_min(1e-12).sqrt())
    return Gaussian(combined(R, vertices.mean_mm), combined(R, vertices.std_mm).abs().clamp_min(1e-2))


class Amvur(nn.Module):
    """Map the global feature g (B, feature_dim) to q(V | I) over all V vertices.

    Tokens may be a subset of the vertices (`config.tokens`). A linear map, fitted on posed meshes, then carries the
    offsets from tokens to vertices. mu_V is a start plus the MLP's offsets in centimetres, so an untrained network
    gives the mean hand. mu_V is wrist-relative by construction. The start is the mean hand, or with `config.start`
    prior-net's V_p. No gradient passes through V_p: prior-net has its own targets and the KL.
    With `config.aligned` tokens also hold the projections of prior-net's vertices and joints into the crop. They hold
    the backbone's maps at these points, too, of `map_dims` channels. With `landmarks` joint tokens also hold the
    offset from the projected joint to its landmark.
    """

    start_mm: Tensor  # (V, 3)
    R: Tensor  # (21, V)
    token_vertices: Tensor  # (T,)
    upsample: Tensor  # (V, T)
    spread: Tensor  # (V, T), no negative weights

    def __init__(
        self,
        feature_dim: int,
        hand: HandModel,
        layer: HandLayer,
        config: AmvurConfig,
        map_dims: Sequence[int] = (),
        landmarks: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        start = mean_hand(layer, hand)
        self.register_buffer("start_mm", start.vertices_mm[0].detach(), persistent=False)
        self.register_buffer("R", torch.as_tensor(hand.joint_regressor), persistent=False)
        self.corrects = config.start == "prior_net"
        token_vertices, upsample = coarse_tokens(
            hand, min(config.tokens or hand.vertex_count, hand.vertex_count)
        )
        self.register_buffer("token_vertices", torch.tensor(token_vertices), persistent=False)
        upsample_t = torch.tensor(upsample)
        # The map of log std has no negative weights, so that it can't overshoot.
        spread = upsample_t.clamp_min(0)
        self.register_buffer("spread", spread / spread.sum(1, keepdim=True), persistent=False)
        if config.upsampling == "learned":
            self.upsample = nn.Parameter(upsample_t)
        else:
            self.register_buffer("upsample", upsample_t, persistent=False)
        if config.kind == "fully_connected":
            last = zero_start(nn.Linear(512, len(token_vertices) * 6))
            self.direct = nn.Sequential(nn.Linear(feature_dim, 512), nn.ReLU(), last)
            return
        template = torch.as_tensor(hand.v_template)
        joints = self.R @ template
        # Decimetres from the wrist: about the same magnitude as g.
        positions = (template[self.token_vertices] - joints[:1]) * 10
        joint_positions = (joints - joints[:1]) * 10

        posed_dim = 3 * self.corrects + 2 * config.aligned

        def tokens(positions: Tensor, posed_dim: int) -> Tokens:
            return Tokens(
                *(feature_dim, positions, config.width, config.positional, posed_dim, config.plain),
                map_dims=map_dims if config.aligned else (),
            )

        self.vertex_tokens = tokens(positions, posed_dim)
        if config.cross_attention:
            self.joint_tokens = tokens(joint_positions, posed_dim + 2 * (config.aligned and landmarks))
        widths = config.widths
        self.stages = nn.ModuleList(
            nn.ModuleList(
                Block(width, config.heads, config.cross_attention, config.self_attention, config.plain)
                for _ in range(config.blocks)
            )
            for width in widths
        )
        self.narrow = nn.ModuleList(TokenLinear(*pair) for pair in pairwise(widths))
        if config.cross_attention:
            self.narrow_joints = nn.ModuleList(TokenLinear(*pair) for pair in pairwise(widths))
        self.norm = nn.Identity() if config.plain else nn.LayerNorm(widths[-1])
        self.mean, self.log_variance = (
            nn.Sequential(
                TokenLinear(widths[-1], widths[-1]), nn.ReLU(), zero_start(TokenLinear(widths[-1], 3))
            )
            for _ in range(2)
        )

    def forward(
        self,
        g: Tensor,
        prior_mm: Tensor | None = None,
        prior_points: Tensor | None = None,
        maps: Sequence[FeatureMap] = (),
        landmarks: Tensor | None = None,
    ) -> Gaussian:
        """Return q(V | I), (B, V, 3).

        Args:
            g: (B, feature_dim).
            prior_mm: (B, V, 3) prior-net's hand, for `start: prior_net`; unused with `mean_hand`.
            prior_points: (B, V, 2) the same hand in crop coordinates, for `aligned`.
            maps: the backbone's maps, for `aligned`.
            landmarks: (B, 21, 2) landmarks in crop coordinates, for `aligned` with landmarks.
        """
        start_mm = self.start_mm.expand(len(g), -1, -1)
        if self.corrects:
            assert prior_mm is not None  # the configuration refuses such a network without prior-net
            start_mm = prior_mm.detach()
        if self.config.kind == "fully_connected":
            offsets, log_variance = self.direct(g).unflatten(-1, (-1, 6)).split(3, -1)
        else:
            features = self._features(g, start_mm, prior_points, maps, landmarks)
            offsets, log_variance = self.mean(features), self.log_variance(features)
        vertices_mm = start_mm + 10 * combined(self.upsample, offsets.float())
        vertices_mm = vertices_mm - combined(self.R[:1], vertices_mm)  # the wrist is the origin
        # The head predicts the log of the variance over START_STD_MM^2; here std becomes millimetres.
        # exp(7) is a std of 33 m, exp(-7) one of 18 um: numerical bounds, far outside any real std.
        log_std = combined(self.spread, log_variance.float()).clamp(-14, 14) / 2
        return Gaussian(vertices_mm, START_STD_MM * log_std.exp())

    def _features(
        self,
        g: Tensor,
        start_mm: Tensor,
        points: Tensor | None,
        maps: Sequence[FeatureMap],
        landmarks: Tensor | None,
    ) -> Tensor:
        """Return F'' (B, T, last width): the tokens after the blocks of all stages."""
        posed, posed_joints, at_vertices, at_joints = [], [], None, None
        if self.corrects:  # decimetres, as in the template
            posed.append(start_mm[:, self.token_vertices] / 100)
            posed_joints.append(combined(self.R, start_mm) / 100)
        if points is not None:
            points = points.detach()
            at_vertices, at_joints = points[:, self.token_vertices], combined(self.R, points)
            posed.append(at_vertices)
            posed_joints.append(at_joints)
            if landmarks is not None:
                posed_joints.append(RESIDUAL_SCALE * (landmarks.detach() - at_joints))
        features = self.vertex_tokens(g, torch.cat(posed, -1) if posed else None, at_vertices, maps)
        joints = None
        if self.config.cross_attention:
            joints = self.joint_tokens(
                g, torch.cat(posed_joints, -1) if posed_joints else None, at_joints, maps
            )
        for stage, blocks in enumerate(self.stages):
            if stage:
                features = self.narrow[stage - 1](features)
                joints = None if joints is None else self.narrow_joints[stage - 1](joints)
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                features = block(features, joints)
        return self.norm(features)
