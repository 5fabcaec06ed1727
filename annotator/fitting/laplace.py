"""Uncertainty of a fit: the Laplace approximation at its minimum, propagated to joints, vertices and the photo.

The cost is a negative log posterior, up to its tolerances. So near its minimum the parameters are Gaussian with the
inverse of its curvature as covariance C. With C = U U^T, a point that moves by D per parameter has the covariance
(D U) (D U)^T. Its diagonal is the squared row norms of D U.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from annotator.fitting.chain import JointChain, PosedChain
from annotator.fitting.objective import State
from annotator.hand import HandModel
from annotator.hand.model import FREIHAND_FROM_MANO

#: Weight of the prior that tolerances are right, in coordinates of landmarks.
_SURE_OF_TOLERANCES = 20

#: Hands whose vertices are processed together: 50 KB each per unknown.
_CHUNK = 32


@dataclass(frozen=True, eq=False)
class Spread:
    """Std of B fitted hands, per coordinate, in the length unit of `Target`."""

    joints3d_mm: Tensor  # (B, 21, 3) 0 at the wrist
    vertices_mm: Tensor  # (B, V, 3)
    joints2d: Tensor  # (B, 21, 2)


def inflation(misfit: Tensor, counted: Tensor) -> Tensor:
    """Return the factors (B,) by which a fit's residual enlarges the std from its curvature.

    Tolerances are those of an average hand. The residuals of `counted` coordinates, RMS `misfit`, estimate the errors
    of this hand's landmarks: the squared factor is the mean of the noise variance under a conjugate prior.
    """
    return ((_SURE_OF_TOLERANCES + counted * misfit.square()) / (_SURE_OF_TOLERANCES + counted)).sqrt()


class Laplace:
    """Propagate a curvature to the points of one hand model."""

    def __init__(self, hand: HandModel, chain: JointChain) -> None:
        """Prepare skinning for small motions."""
        self._chain = chain
        like = chain.rest_mm
        # Bones by finger and joint: per finger the palm, common to all, then its three bones.
        fingers = np.array(FREIHAND_FROM_MANO[1:]).reshape(5, 4)[:, :3]
        weights = np.zeros((hand.vertex_count, 5, 4), np.float32)
        weights[:, :, 1:] = hand.weights[:, fingers]
        weights[:, 0, 0] = hand.weights[:, 0]
        self._weights = torch.from_numpy(weights.reshape(-1, 20)).to(like.device)
        shape_mm = 1000 * hand.shapedirs.astype(np.float64)
        shape_mm -= np.einsum("v,vdb->db", hand.J_regressor[0].astype(np.float64), shape_mm)
        self._shape_mm = torch.from_numpy(shape_mm).float().to(like.device)

    def spread(self, state: State, curvature: Tensor, vertices_mm: Tensor) -> Spread:
        """Return the std of joints, vertices and 2D joints.

        Args:
            state: the minimum, for B hands.
            curvature: (B, D, D) of the cost at the minimum.
            vertices_mm: (B, V, 3) the hands' meshes, camera axes, wrist-relative.
        """
        chain = self._chain
        posed = chain.posed(state.hands)
        identity = torch.eye(curvature.shape[-1]).to(curvature).expand_as(curvature)
        factor = torch.linalg.solve_triangular(torch.linalg.cholesky(curvature).mT, identity, upper=True)  # U
        of_hand = factor[:, :-4]
        moved = chain.derivatives(posed) @ of_hand[:, None]  # (B, 21, 3, D)
        scale = state.log_scale.exp()[:, None, None, None]
        projected = scale * (moved[:, :, :2] + posed.joints_mm[..., :2, None] * factor[:, None, None, -4])
        projected = projected + factor[:, None, -3:-1]
        return Spread(
            moved.norm(dim=-1), self._of_vertices(posed, of_hand, moved, vertices_mm), projected.norm(dim=-1)
        )

    def _of_vertices(self, posed: PosedChain, factor: Tensor, moved: Tensor, vertices_mm: Tensor) -> Tensor:
        """Return the std of vertices (B, V, 3). A vertex moves with its bones, about its own posed position."""
        rotations = (self._chain.rotations(posed) @ factor[:, None, None]).flatten(1, 2)  # (B, 20, 3, D)
        count = len(rotations)
        at = posed.joints_mm.new_zeros(count, 5, 4, 3)
        at[:, :, 1:] = posed.joints_mm[:, 1:].view(count, 5, 4, 3)[:, :, :3]
        shifts = moved.new_zeros(count, 5, 4, *moved.shape[2:])
        shifts[:, :, 1:] = moved[:, 1:].view(count, 5, 4, *moved.shape[2:])[:, :, :3]
        shifts = shifts.flatten(1, 2) - torch.linalg.cross(
            rotations, at.view(count, 20, 3, 1).expand_as(rotations), dim=2
        )
        # With the shape, a vertex moves as at rest, minus its joint's motion, rotated with its bones.
        bones = posed.globals.flatten(1, 2)  # (B, 20, 3, 3)
        of_joints = bones.new_zeros(5, 4, 3, 10)
        of_joints[:, 1:] = self._chain.shape_mm[1:].view(5, 4, 3, 10)[:, :3]
        shifts = shifts - bones @ of_joints.flatten(0, 1) @ factor[:, None, -10:]
        parts = []
        for first in range(0, count, _CHUNK):
            rows = slice(first, first + _CHUNK)
            x, y, z = vertices_mm[rows, ..., None].float().unbind(2)
            blend = torch.cat([rotations[rows], shifts[rows]], 2).float().flatten(2)
            motion = (self._weights @ blend).unflatten(2, (6, -1))  # (b, V, rotation and shift, D)
            blended = (self._weights @ bones[rows].float().flatten(2)).unflatten(2, (3, 3))
            shift = (blended @ self._shape_mm) @ factor[rows, None, -10:].float() + motion[:, :, 3:]
            # The cross product of rotation and vertex, axis by axis: half the memory traffic.
            about_x, about_y, about_z = motion[:, :, :3].unbind(2)
            crossed = (about_y * z - about_z * y, about_z * x - about_x * z, about_x * y - about_y * x)
            parts.append(
                torch.stack([(crossed[axis] + shift[:, :, axis]).norm(dim=-1) for axis in range(3)], -1)
            )
        return torch.cat(parts)
