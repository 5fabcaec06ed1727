"""The weak-perspective camera C = (s, r, t) of section 3.1, and its projection of q(J3): formula (6).

`J2 = s (Rot(r) J3)_xy + t` in crop coordinates. Units inside the network: s in crop half-sides per
decimetre, r in radians, t in crop half-sides, all of magnitude 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from annotator.config import CameraConfig
from annotator.coordinates import project_weak
from annotator.model.amvur import Gaussian
from annotator.model.attention import zero_start
from annotator.model.prior_net import PriorHand
from annotator.rotations import rotvec_to_rotmat

#: Std of p(C | I), the 1 of formula (4): a tenth of each of the units above.
PRIOR_STD = 0.1

#: Share of the crop that the mean hand fills before training: crops are padded boxes.
START_FILL = 0.8

#: Bounds of a fitted scale, crop half-sides per decimetre, so that softplus has a finite inverse.
_FITTED_SCALES = (1e-3, 20.0)


@dataclass
class WeakCamera:
    """B weak-perspective cameras, Gaussian in each of their six parameters."""

    scale_per_mm: Tensor  # (B,) crop half-sides per millimetre
    rotvec: Tensor  # (B, 3) radians
    translation: Tensor  # (B, 2) crop half-sides
    std: Tensor  # (B, 6) of (s per decimetre, r, t)

    def rotation(self) -> Tensor:
        """Return the rotation matrices (B, 3, 3), by Rodrigues' formula."""
        return rotvec_to_rotmat(self.rotvec)

    def project(self, points_mm: Tensor) -> Tensor:
        """Project points in crop axes (B, N, 3) to crop coordinates and depth (B, N, 3)."""
        return project_weak(points_mm, self.scale_per_mm, self.rotation(), self.translation)


@torch.no_grad()
def fit_camera(joints3d_mm: Tensor, joints2d: Tensor, has_joints2d: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weak-perspective camera with r = 0 that projects joints closest to their 2D positions.

    The least-squares solution in closed form. For true joints it is C* of (4). No gradient passes.

    Args:
        joints3d_mm: (B, 21, 3) crop axes.
        joints2d: (B, 21, 2) crop coordinates.
        has_joints2d: (B, 21) bool; the other joints may hold anything.

    Returns:
        The camera (B, 6), s in crop half-sides per decimetre, r and t; and whether it is valid (B,): at least two
        joints that do not coincide, and a positive scale. All six parameters of an invalid camera are 0.
    """
    weight = has_joints2d[..., None].to(joints3d_mm)
    xy = torch.where(has_joints2d[..., None], joints3d_mm[..., :2], 0.0)
    uv = torch.where(has_joints2d[..., None], joints2d, 0.0)
    count = weight.sum(1, keepdim=True).clamp_min(1)
    xy_mean, uv_mean = xy.sum(1, keepdim=True) / count, uv.sum(1, keepdim=True) / count
    xy = (xy - xy_mean) * weight
    spread = xy.square().sum((1, 2))
    scale = (xy * (uv - uv_mean)).sum((1, 2)) / spread.clamp_min(1.0)
    # Square millimetres: less means a single joint, or joints exactly behind each other.
    valid = (spread > 1.0) & (scale > 0)
    translation = uv_mean[:, 0] - scale[:, None] * xy_mean[:, 0]
    fitted = torch.cat([scale[:, None] * 100, torch.zeros_like(xy[:, 0, :1]).expand(-1, 3), translation], 1)
    return torch.where(valid[:, None], fitted, 0.0), valid


class CameraHead(nn.Module):
    """Map the global feature (B, feature_dim) to a camera.

    The head corrects a start camera: one fitted to landmarks, where the network reads them, otherwise the one that
    centres the mean hand in the crop. With `constant_std` this is prior-net's head, p(C | I) = N(head, 1). Without,
    it is q(C | I) with a std of its own.
    """

    start: Tensor  # (6,) before softplus

    def __init__(
        self, feature_dim: int, start: PriorHand, config: CameraConfig, constant_std: bool, width: int = 128
    ) -> None:
        super().__init__()
        self.with_rotation = config.rotation
        self.constant_std = constant_std
        self.mlp = nn.Sequential(
            nn.Linear(feature_dim, width), nn.ReLU(), zero_start(nn.Linear(width, 6 if constant_std else 12))
        )
        corners = torch.stack([start.vertices_mm[0].amin(0), start.vertices_mm[0].amax(0)])[:, :2]
        scale_per_mm = 2 * START_FILL / (corners[1] - corners[0]).max()
        scale = scale_per_mm * 100
        translation = -corners.mean(0) * scale_per_mm
        raw = torch.cat([_before_softplus(scale).view(1), torch.zeros(3), translation])
        self.register_buffer("start", raw.detach(), persistent=False)

    def forward(self, g: Tensor, fitted: tuple[Tensor, Tensor] | None = None) -> WeakCamera:
        """Return B cameras.

        Args:
            g: (B, feature_dim).
            fitted: result of `fit_camera`: start cameras, used where they are valid.
        """
        out = self.mlp(g).float()
        start = self.start
        if fitted is not None:
            numbers, valid = fitted
            scale = _before_softplus(numbers[:, :1].clamp(*_FITTED_SCALES))
            start = torch.where(valid[:, None], torch.cat([scale, numbers[:, 1:]], 1), start)
        mean = out[:, :6] + start
        rotvec = mean[:, 1:4] if self.with_rotation else torch.zeros_like(mean[:, 1:4])
        std = torch.full_like(mean, PRIOR_STD)
        if not self.constant_std:
            std = std * (out[:, 6:].clamp(-14, 14) / 2).exp()
        if not self.with_rotation:
            std = std * torch.tensor([1.0, 0, 0, 0, 1, 1], device=std.device)
        return WeakCamera(softplus(mean[:, 0]) / 100, rotvec, mean[:, 4:], std)


def _before_softplus(scale: Tensor) -> Tensor:
    """Return the inverse of softplus, which keeps s positive."""
    return scale.expm1().log()


def joints2d_covariance(joints: Gaussian, camera: WeakCamera, annotation_noise: float) -> Tensor:
    """Return Sigma_2 of formula (6): (B, 21, 2, 2), crop half-sides squared.

    It is the sum of s^2 [Rot diag(sigma_J^2) Rot^T]_xy, the camera's variance and the noise of a 2D label. The
    camera's variance is to first order in s and t. The variance of r adds nothing here: its target is 0 under a tight
    prior.
    """
    rotation = camera.rotation()
    rows = camera.scale_per_mm[:, None, None] * rotation[:, :2]  # (B, 2, 3)
    covariance = torch.einsum("bik,bnk,bjk->bnij", rows, joints.std_mm.square(), rows)
    xy_dm = (joints.mean_mm @ rotation.transpose(-1, -2))[..., :2] / 100
    variance = camera.std.square()
    covariance = covariance + variance[:, :1, None, None] * xy_dm[..., :, None] * xy_dm[..., None, :]
    diagonal = variance[:, 4:] + annotation_noise**2  # (B, 2)
    return covariance + torch.diag_embed(diagonal)[:, None]
