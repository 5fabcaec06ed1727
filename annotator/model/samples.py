"""Draw plausible hands from q(V | I): draws rotate, bend and reshape the mean mesh.

q(V | I) is a product over coordinates. Independent draws would tear the mesh, because a fingertip's std is several
edges long. So a draw moves the whole mesh, by parameters theta of `hand/repose.py`: a rotation about the wrist, pose
components, betas. theta_k is N(c_k, lambda_k). Each hand has its own lambda. It fits the variances to the calibrated
std^2 of vertices and joints, to first order, by non-negative least squares:

    minimise  sum_i w_i (sum_k lambda_k (dx_i / dtheta_k)^2 / std_i^2 - 1)^2   subject to  0 <= lambda <= limit

Pose and shape have the limit 1, their spread over all hands. Size, the first beta, has 2: on a straight hand only a
longer hand moves points along the fingers. A common factor then makes the mean ratio of the draws' std to the
calibrated std 1, for full rotations and not their linear part. Averages over rotations shorten bones; the centre c
compensates for that as far as pose and shape stay likely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from annotator.hand.model import FREIHAND_FROM_MANO, HandModel
from annotator.hand.repose import Reposer
from annotator.model.amvur import Gaussian

#: Largest std of the rotation about each axis, radians: larger angles do not spread vertices further.
LARGEST_ROTATION = 1.0

#: Largest variance of the first beta.
LARGEST_SIZE = 2.0

#: Cost of one std of the centre, relative to the mean's squared distance in std. Near 0 the mean of the draws is
#: closer to the mean mesh, and edges become a tenth longer.
CENTRE_COST = 0.2

#: Vertices in the fit, draws per parameter, steps of the least squares, and steps of factor and centre.
_PROBES, _DRAWS, _STEPS, _ROUNDS = 100, 2, 40, 2

#: Steps of central differences: radians, std.
_ROTATION_STEP, _STEP = 0.1, 0.3


class MeshSampler(nn.Module):
    """Draw hands around mean meshes of one hand model."""

    probes: Tensor  # (_PROBES + 5,), the fingertips last
    share: Tensor  # (_PROBES + 20, 1), weights of probes and joints
    noise: Tensor  # (_DRAWS * parameter_count, parameter_count)
    limits: Tensor  # (parameter_count,) of the variances
    steps: Tensor  # (parameter_count,)

    def __init__(self, hand: HandModel) -> None:
        super().__init__()
        self.reposer = Reposer(hand)
        generator = np.random.default_rng(0)
        probes = generator.choice(hand.vertex_count, _PROBES, replace=False)
        # All vertices together weigh as much as all joints.
        share = np.repeat([0.5 / _PROBES, 0.5 / 20], [_PROBES, 20])[:, None]
        limits = np.ones(self.parameter_count)
        limits[:3], limits[3 + self.reposer.pose_count] = LARGEST_ROTATION**2, LARGEST_SIZE
        # Orthonormal columns: over these draws each parameter has exactly mean 0 and variance 1.
        noise = generator.standard_normal((_DRAWS * self.parameter_count, self.parameter_count))
        noise = np.linalg.qr(noise - noise.mean(0))[0] * np.sqrt(len(noise))
        buffers = {
            "noise": noise,
            "share": share,
            "limits": limits,
            "steps": np.array([_ROTATION_STEP] * 3 + [_STEP] * (self.parameter_count - 3)),
        }
        for name, values in buffers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        with_tips = torch.from_numpy(np.concatenate([probes, hand.tip_vertices]))
        self.register_buffer("probes", with_tips, persistent=False)

    @property
    def parameter_count(self) -> int:
        """Count of random numbers per draw."""
        return self.reposer.parameter_count

    def forward(self, vertices: Gaussian, joints3d: Gaussian, noise: Tensor) -> Tensor:
        """Draw N hands around each of B mean meshes.

        Args:
            vertices: mean and calibrated std (B, V, 3) of right hands, millimetres, wrist-relative.
            joints3d: the same for the 21 joints (B, 21, 3); only std is used, without the wrist.
            noise: (B, N, parameter_count), standard normal, as from `keyed_noise`.

        Returns:
            (B, N, V, 3) millimetres, wrist-relative, in the axes of `vertices`. Joints are R times these.
        """
        bones = self.reposer.bones(vertices.mean_mm)
        std_mm = torch.cat([vertices.std_mm[:, self.probes[:-5]], joints3d.std_mm[:, 1:]], 1)
        probes = self.reposer.skin(bones, vertices.mean_mm, self.probes)

        def points(parameters: Tensor) -> Tensor:
            """Return probes, then all joints except the wrist: (B, N, _PROBES + 20, 3)."""
            moved, joints = self.reposer.move(bones, probes, parameters.expand(len(std_mm), -1, -1))
            in_order = torch.cat([joints, moved[:, :, -5:]], 2)[:, :, list(FREIHAND_FROM_MANO)]
            return torch.cat([moved[:, :, :-5], in_order[:, :, 1:]], 2) / std_mm[:, None].clamp_min(0.1)

        centre, std = self._fit(points)
        skin = self.reposer.skin(bones, vertices.mean_mm)
        drawn, _ = self.reposer.move(bones, skin, centre[:, None] + std[:, None] * noise)
        return drawn - self.reposer.R[:1] @ drawn

    def _fit(self, points: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Fit mean and std (B, parameter_count) of the parameters so that `points`, in units of std, have std 1."""
        share = self.share.expand(-1, 3).flatten() / 3
        each = torch.diag(self.steps)[None]
        slopes = ((points(each) - points(-each)) / (2 * self.steps[:, None, None])).flatten(2)
        variances = bounded_least_squares(slopes.square(), share, self.limits, _STEPS)
        centre = torch.zeros_like(variances)
        mean = points(centre[:, None]).flatten(1)
        cost = CENTRE_COST / self.limits
        weighted = slopes * share
        normal = weighted @ slopes.mT + torch.diag(cost)
        for _ in range(_ROUNDS):
            drawn = points(centre[:, None] + variances.sqrt()[:, None] * self.noise).flatten(2)
            ratio = drawn.std(1, unbiased=False) @ share
            # If no rotation spreads a hand that far, the factor stays finite.
            variances = torch.minimum(variances / ratio.square()[:, None], 4 * self.limits)
            # A step of Gauss and Newton on |mean of draws - mean mesh|^2 + cost centre^2.
            missed = (weighted @ (drawn.mean(1) - mean)[..., None])[..., 0]
            centre = centre - torch.linalg.solve(normal, missed + cost * centre)
        return centre, variances.sqrt()


def bounded_least_squares(columns: Tensor, weights: Tensor, limits: Tensor, steps: int) -> Tensor:
    """Minimise sum_i weights_i (sum_k x_k columns_ki - 1)^2 over 0 <= x <= limits.

    Args:
        columns: (B, K, n), none negative. weights: (n,), none negative. limits: (K,), positive.
        steps: of multiplicative updates, which keep x positive.

    Returns:
        x (B, K).
    """
    weighted = columns * weights
    normal, target = weighted @ columns.mT, weighted.sum(-1)
    x = limits.expand_as(target) / 10
    for _ in range(steps):
        x = torch.minimum(x * target / (normal @ x[..., None])[..., 0].clamp_min(1e-12), limits)
    return x


def keyed_noise(keys: Sequence[int], count: int, parameter_count: int) -> Tensor:
    """Draw standard normal noise (B, count, parameter_count): each row depends on its key alone, not on its batch.

    A larger count begins with the draws of a smaller one.
    """
    rows = [np.random.default_rng(key).standard_normal((count, parameter_count), np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows))
