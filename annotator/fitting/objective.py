"""The cost of a hand for its landmarks, as a sum of squares: residuals and their derivatives.

For one hand with joints J (21, 3), wrist-relative, and landmarks (u, z), with all lengths scaled so that the landmarks
measure `PALM_MM` from wrist to middle knuckle:

    1/2 sum | (s J_xy + t - u) / (tolerance_2d span) |^2             the camera's view
    + depth_weight / 2 sum | (a J' - (u', z')) / tolerance_3d |^2    the shape, both relative to their means
    + pose_weight / 2 |c|^2 + shape_weight / 2 |betas|^2             the hand model's prior

with span the longer side of the landmarks' box in the photo. The 3D term has its own scale a, the least-squares one,
so that a detector's depth errors do not affect the camera. Unknown landmarks are in neither sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from annotator.config import FitConfig
from annotator.fitting.chain import HandParameters, JointChain, PosedChain

#: Distance from wrist to middle knuckle of landmarks after scaling for the fit.
PALM_MM = 90.0

_WRIST, _MIDDLE_KNUCKLE = 0, 9

#: Minimum length of a palm, which may point at the camera, relative to the landmarks' extent.
_MIN_PALM = 0.25


class State(NamedTuple):
    """All fitted parameters of B hands, in the length unit of `Target`."""

    hands: HandParameters
    log_scale: Tensor  # (B,) of s
    shift: Tensor  # (B, 2) t
    scale_3d: Tensor  # (B,) a

    def rows(self, rows: Tensor) -> State:
        """Return some of the hands."""
        return State(self.hands.rows(rows), *(values[rows] for values in self[1:]))

    def put(self, rows: Tensor, other: State) -> None:
        """Replace some of the hands by `other`, in place."""
        for mine, theirs in zip((*self.hands, *self[1:]), (*other.hands, *other[1:]), strict=True):
            mine[rows] = theirs

    def moved(self, step: Tensor) -> State:
        """Return the state after a step (B, D), D = 3 + K + 10 + 4: of the hand, then log s, t, a."""
        return State(
            self.hands.moved(step[:, :-4]),
            self.log_scale + step[:, -4],
            self.shift + step[:, -3:-1],
            self.scale_3d + step[:, -1],
        )


@dataclass(frozen=True, eq=False)
class Target:
    """Landmarks of B right hands as input of the fit: centred, `PALM_MM` from wrist to middle knuckle."""

    points: Tensor  # (B, 21, 3); unknown coordinates are 0
    weight_2d: Tensor  # (B, 21) 1 or 0 over the tolerance: of x and y
    weight_3d: Tensor  # (B, 21) likewise with the depth's weight; 0 where the depth is unknown
    centre_px: Tensor  # (B, 2)
    units_per_px: Tensor  # (B,)

    @staticmethod
    def of(landmarks: Tensor, config: FitConfig) -> Target:
        """Scale landmarks (B, 21, 3), pixels, NaN where unknown; each hand needs at least two known landmarks."""
        has_2d = landmarks[..., :2].isfinite().all(-1)
        has_3d = has_2d & landmarks[..., 2].isfinite()
        points = landmarks.nan_to_num(0, 0, 0)
        inf = torch.where(has_2d, 0.0, torch.inf)[..., None]
        low, high = (points[..., :2] + inf).amin(1), (points[..., :2] - inf).amax(1)
        span_px = (high - low).amax(-1)
        centre_px = (low + high) / 2
        depth_mean = (points[..., 2] * has_3d).sum(1) / has_3d.sum(1).clamp(min=1)
        points = points - torch.cat([centre_px, depth_mean[:, None]], -1)[:, None]
        points = points * torch.stack([has_2d, has_2d, has_3d], -1)
        palm_px = (points[:, _WRIST] - points[:, _MIDDLE_KNUCKLE]).norm(dim=-1)
        # Without depth, or without these two joints, the palm is assumed to be half of the visible extent.
        known = has_3d[:, _WRIST] & has_3d[:, _MIDDLE_KNUCKLE]
        palm_px = torch.where(known, palm_px.maximum(_MIN_PALM * span_px), span_px / 2)
        units_per_px = PALM_MM / palm_px
        tolerance_2d = config.tolerance_2d * span_px * units_per_px
        return Target(
            points=points * units_per_px[:, None, None],
            weight_2d=has_2d.to(points) / tolerance_2d[:, None],
            weight_3d=has_3d.to(points) * (config.depth_weight**0.5 / config.tolerance_3d_mm),
            centre_px=centre_px,
            units_per_px=units_per_px,
        )

    def rows(self, rows: Tensor) -> Target:
        """Return some of the hands."""
        return Target(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class FitObjective:
    """The sum of squares over a hand model's joints."""

    chain: JointChain
    config: FitConfig

    def residuals(self, state: State, target: Target) -> tuple[Tensor, PosedChain]:
        """Return residuals (B, 21 * 2 + 21 * 3 + K + 10), whose squared norm is twice the cost, and posed joints."""
        posed = self.chain.posed(state.hands)
        joints = posed.joints_mm
        projected = joints[..., :2] * state.log_scale.exp()[:, None, None] + state.shift[:, None]
        off_2d = (projected - target.points[..., :2]) * target.weight_2d[..., None]
        off_3d = state.scale_3d[:, None, None] * self._centred(joints, target)
        off_3d = off_3d - self._centred(target.points, target)
        prior = self._prior_weights(joints)
        parts = [
            off_2d.flatten(1),
            (off_3d * target.weight_3d[..., None]).flatten(1),
            torch.cat([state.hands.coefficients, state.hands.betas], -1) * prior,
        ]
        return torch.cat(parts, -1), posed

    def derivatives(self, state: State, target: Target, posed: PosedChain) -> Tensor:
        """Return the derivatives of the landmarks' residuals by a step of `State.moved`: (B, 105, D).

        Derivatives of the prior are constant, the square root of `prior_precision`.
        """
        joints = posed.joints_mm
        by_hand = self.chain.derivatives(posed)
        count, scale = len(joints), state.log_scale.exp()[:, None, None]
        weight_2d, weight_3d = target.weight_2d[..., None, None], target.weight_3d[..., None, None]
        by_shift = torch.eye(2).to(joints).expand(count, 21, 2, 2)
        rows_2d = torch.cat(
            [
                by_hand[:, :, :2] * scale[..., None],
                (joints[..., :2] * scale)[..., None],
                by_shift,
                torch.zeros_like(by_shift[..., :1]),
            ],
            -1,
        )
        flat = by_hand.flatten(2)
        centred = self._centred(flat, target).unflatten(2, (3, -1)) * state.scale_3d[:, None, None, None]
        rows_3d = torch.cat(
            [
                centred,
                torch.zeros_like(joints[..., None]).expand(-1, -1, -1, 3),
                self._centred(joints, target)[..., None],
            ],
            -1,
        )
        return torch.cat([(rows_2d * weight_2d).flatten(1, 2), (rows_3d * weight_3d).flatten(1, 2)], 1)

    def prior_precision(self, state: State) -> Tensor:
        """Return the prior's second derivatives (D,), a diagonal."""
        free = state.log_scale.new_zeros(3)
        # Without depth the 3D scale is undetermined: a little curvature keeps it constant.
        return torch.cat([free, self._prior_weights(free).square(), free, free[:1] + 1e-6])

    def _prior_weights(self, like: Tensor) -> Tensor:
        """Return the prior's weights (K + 10,)."""
        return torch.cat(
            [
                like.new_full((self.chain.pose_dim,), self.config.pose_weight**0.5),
                like.new_full((10,), self.config.shape_weight**0.5),
            ]
        )

    @staticmethod
    def _centred(values: Tensor, target: Target) -> Tensor:
        """Subtract from values (B, 21, C) of joints their mean over joints with known depth."""
        known = (target.weight_3d > 0).to(values)[..., None]
        return values - (values * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
