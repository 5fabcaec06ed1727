"""Meshes drawn from q(V | I) that are hands: what varies is how the mean mesh is turned, bent and shaped.

q(V | I) is a product over coordinates. Drawn independently they tear the mesh, for a fingertip's std is several edges
long. So a draw moves the whole mesh, by parameters theta of `hand/repose.py`: a rotation about the wrist, pose
components, betas. theta_k is N(c_k, lambda_k). Each hand has lambda of its own, which brings the variances to
the calibrated std^2 of vertices and joints, to first order and by non-negative least squares:

    minimise  sum_i w_i (sum_k lambda_k (dx_i / dtheta_k)^2 / std_i^2 - 1)^2   subject to  0 <= lambda <= limit

Pose and shape have the limit 1, the spread of hands of which nothing is known. Size, the first beta, has 2: only a
longer hand reaches further along a straight one. A common factor then makes the mean ratio of the draws' std to the
calibrated one 1 for rotations as they are, not their linear part. Turned bones are on average shorter than bones;
the centre c makes up for that as far as pose and shape stay likely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from annotator.hand.model import FREIHAND_FROM_MANO, HandModel
from annotator.hand.repose import Reposer
from annotator.model.amvur import Gaussian

#: Largest std of the rotation about each axis, radians: a larger angle spreads vertices no further.
LARGEST_TURN = 1.0

#: Largest variance of the first beta.
LARGEST_SIZE = 2.0

#: What a standard deviation of the centre costs beside the mean's squared distance in std. Near 0 the mean of the
#: draws lies nearer to the mean mesh, and edges become a tenth longer.
CENTRE_COST = 0.2

#: Vertices that the fit looks at, draws for each parameter, steps of the least squares, and of factor and centre.
_PROBES, _DRAWS, _STEPS, _ROUNDS = 100, 2, 40, 2

#: Steps of central differences: radians, standard deviations.
_TURN_STEP, _STEP = 0.1, 0.3


class MeshSampler(nn.Module):
    """Draws hands about mean meshes of one hand model."""

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
        # All vertices together count as much as all joints.
        share = np.repeat([0.5 / _PROBES, 0.5 / 20], [_PROBES, 20])[:, None]
        limits = np.ones(self.parameter_count)
        limits[:3], limits[3 + self.reposer.pose_count] = LARGEST_TURN**2, LARGEST_SIZE
        # Orthonormal columns: over these draws each parameter's mean is 0 and its variance 1, exactly.
        noise = generator.standard_normal((_DRAWS * self.parameter_count, self.parameter_count))
        noise = np.linalg.qr(noise - noise.mean(0))[0] * np.sqrt(len(noise))
        buffers = {
            "noise": noise,
            "share": share,
            "limits": limits,
            "steps": np.array([_TURN_STEP] * 3 + [_STEP] * (self.parameter_count - 3)),
        }
        for name, values in buffers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        with_tips = torch.from_numpy(np.concatenate([probes, hand.tip_vertices]))
        self.register_buffer("probes", with_tips, persistent=False)

    @property
    def parameter_count(self) -> int:
        """How many random numbers a draw takes."""
        return self.reposer.parameter_count

    def forward(self, vertices: Gaussian, joints3d: Gaussian, noise: Tensor) -> Tensor:
        """Draw N hands about each of B mean meshes.

        Args:
            vertices: mean and calibrated std (B, V, 3) of right hands, millimetres, wrist-relative.
            joints3d: the same of the 21 joints (B, 21, 3); of it only std counts, and not the wrist's.
            noise: (B, N, parameter_count), standard normal, as from `keyed_noise`.

        Returns:
            (B, N, V, 3) millimetres, wrist-relative, in the axes of `vertices`. Joints are R times these.
        """
        bones = self.reposer.bones(vertices.mean_mm)
        std_mm = torch.cat([vertices.std_mm[:, self.probes[:-5]], joints3d.std_mm[:, 1:]], 1)
        probes = self.reposer.skin(bones, vertices.mean_mm, self.probes)

        def points(parameters: Tensor) -> Tensor:
            """Probes, then all joints but the wrist: (B, N, _PROBES + 20, 3)."""
            found, joints = self.reposer.move(bones, probes, parameters.expand(len(std_mm), -1, -1))
            in_order = torch.cat([joints, found[:, :, -5:]], 2)[:, :, list(FREIHAND_FROM_MANO)]
            return torch.cat([found[:, :, :-5], in_order[:, :, 1:]], 2) / std_mm[:, None].clamp_min(0.1)

        centre, std = self._fit(points)
        skin = self.reposer.skin(bones, vertices.mean_mm)
        drawn, _ = self.reposer.move(bones, skin, centre[:, None] + std[:, None] * noise)
        return drawn - self.reposer.R[:1] @ drawn

    def _fit(self, points: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Fit means and std (B, parameter_count) of the parameters, so that `points`, in units of std, have std 1."""
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
            # Where no rotation spreads a hand that far, the factor ends at some variance.
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
    """Draw standard normal noise (B, count, parameter_count): a row depends on its key alone, not on its batch.

    A larger count begins with the draws of a smaller one.
    """
    rows = [np.random.default_rng(key).standard_normal((count, parameter_count), np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows))
