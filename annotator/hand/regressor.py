"""Linear maps between points of a hand that are valid in every pose: joints from vertices, vertices from tokens.

A regressor fitted only on the rest mesh drifts from the joint when the hand bends. These are fitted on posed and
shaped meshes, each target from a few nearby source points.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from annotator.hand import anatomy, plausible_poses
from annotator.hand.layer import HandLayer
from annotator.hand.model import FREIHAND_FROM_MANO, MANO_FROM_FREIHAND, HandModel
from annotator.rotations import rotvec_to_rotmat

Array = NDArray[np.floating]
Indices = NDArray[np.int64]


class Residual(NamedTuple):
    """Distance between mapped and true points on meshes outside the fit, millimetres."""

    mean_mm: float
    max_mm: float


def fit_linear_map(
    sources: Array, targets: Array, candidates: Sequence[Indices], noise: float = 2e-4
) -> NDArray[np.float32]:
    """Fit least-squares weights (K, V) with `weights @ sources[n]` close to `targets[n]`, float32.

    `sources (N, V, 3)` and `targets (N, K, 3)` share a unit; target k uses only the points `candidates[k]`. Rows sum
    to 1, so the map commutes with translation. `noise` is the ridge, in the same unit: the weights are optimal if
    every source coordinate has independent noise of this size.
    """
    weights = np.zeros((targets.shape[1], sources.shape[1]))
    for row, near, target in zip(weights, candidates, targets.swapaxes(0, 1), strict=True):
        points = sources[:, near].astype(np.float64)
        centre = points.mean(axis=1)
        # Relative to the candidates' centre, equal weights give zero, so the ridge solution sums to zero
        # (except for rounding). Adding 1/C to each weight makes the row sum to one.
        system = (points - centre[:, None]).swapaxes(1, 2).reshape(-1, len(near))
        normal = system.T @ system + len(system) * noise**2 * np.eye(len(near))
        solved = np.linalg.solve(normal, system.T @ (target - centre).reshape(-1))
        row[near] = solved - solved.mean() + 1.0 / len(near)
    return weights.astype(np.float32)


def sample_meshes(hand: HandModel, count: int, seed: int) -> tuple[Array, Array]:
    """Draw plausible hands, wrist not rotated: vertices (N, V, 3), articulated joints (N, 21, 3), metres."""
    generator = np.random.default_rng(seed)
    poses = plausible_poses.sample_poses(anatomy.rest_joints(hand), count, generator)
    betas = torch.from_numpy(generator.normal(size=(count, 10)).clip(-2.5, 2.5)).float()
    rotvecs = torch.from_numpy(np.concatenate([np.zeros((count, 3)), poses], axis=1)).float()
    with torch.no_grad():
        vertices, joints = HandLayer(hand).articulate(rotvec_to_rotmat(rotvecs.reshape(count, 16, 3)), betas)
    return vertices.numpy(), joints.numpy()


def residual(weights: Array, sources: Array, targets: Array) -> Residual:
    """Return the distance of `weights @ sources` from `targets`, both in metres."""
    distance_mm = 1000.0 * np.linalg.norm(np.einsum("kv,nvc->nkc", weights, sources) - targets, axis=-1)
    return Residual(float(distance_mm.mean()), float(distance_mm.max()))


def joint_candidates(template: Array, weights: Array, parents: Indices, joints: Array) -> list[Indices]:
    """Return for each of the 16 joints (16, 3), MANO's order, the 60 vertices nearest to it at rest.

    Only vertices skinned mostly to the joint or its parent qualify, so that the map stays on its finger.
    """
    nearest: list[Indices] = []
    for joint, parent in enumerate(np.maximum(parents, 0)):
        own = weights[:, sorted({joint, int(parent)})].sum(axis=1)
        distance = np.linalg.norm(template - joints[joint], axis=1) + 10.0 * (own < 0.5)
        nearest.append(np.sort(np.argsort(distance, kind="stable")[:60]))
    return nearest


def fit_joint_regressor(
    hand: HandModel, samples: int = 300, seed: int = 0
) -> tuple[NDArray[np.float32], Residual]:
    """Fit the joint regressor `R` (21, V), FreiHAND's order; return it and its residual on new poses and shapes.

    `hand.joint_regressor` is not read and may be zero. Fingertip rows select the tip vertices.
    """
    vertices, joints = sample_meshes(hand, samples, seed)
    articulated = list(MANO_FROM_FREIHAND[:16])
    candidates = joint_candidates(
        hand.v_template, hand.weights, hand.kintree_table[0], hand.J_regressor @ hand.v_template
    )
    fitted = fit_linear_map(vertices, joints[:, articulated], candidates)
    tips = np.eye(hand.vertex_count, dtype=np.float32)[hand.tip_vertices]
    regressor = np.concatenate([fitted, tips])[list(FREIHAND_FROM_MANO)]

    fresh_vertices, fresh_joints = sample_meshes(hand, samples // 3, seed + 1)
    rows = [k for k in range(21) if k % 4 or not k]
    return regressor, residual(regressor[rows], fresh_vertices, fresh_joints[:, rows])


def farthest_points(points: Array, count: int, first: Sequence[int]) -> Indices:
    """Return indices (count,) of points (V, 3): those in `first`, then repeatedly the farthest from all chosen."""
    chosen = list(first)
    distance = np.linalg.norm(points[:, None] - points[chosen], axis=2).min(axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.array(chosen, dtype=np.int64)


@lru_cache(maxsize=4)  # networks of one hand model have the same tokens, and fitting them takes time
def coarse_tokens(
    hand: HandModel, count: int, neighbours: int = 12, samples: int = 150, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Choose a coarse subset of the vertices for AMVUR's tokens, and fit the map back to all vertices.

    Return `token_vertices (T,)`, sorted, including the fingertips; `upsample (V, T)`, where
    `upsample @ vertices[token_vertices]` is the full mesh in any pose (a token's own row is one-hot). Deterministic.
    """
    template = hand.v_template.astype(np.float64)
    tokens = np.sort(farthest_points(template, count, hand.tip_vertices.tolist()))
    # Points that move together count as near: differences of skinning weights add a distance of centimetres.
    features = np.concatenate([template, 0.03 * hand.weights], axis=1)
    distance = np.linalg.norm(features[:, None] - features[tokens], axis=2)
    candidates = list(np.argsort(distance, axis=1, kind="stable")[:, : min(neighbours, count)])
    vertices, _ = sample_meshes(hand, samples, seed)
    upsample = fit_linear_map(vertices[:, tokens], vertices, candidates, noise=5e-4)
    upsample[tokens] = np.eye(count, dtype=np.float32)
    for shared in (tokens, upsample):
        shared.setflags(write=False)
    return tokens, upsample
