"""Start of a fit: the mean hand aligned with the landmarks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from annotator.fitting.chain import HandParameters, JointChain
from annotator.fitting.objective import State, Target
from annotator.rotations import rotvec_to_rotmat

#: Wrist, thumb's first joint and the four knuckles: they move little relative to each other.
_PALM = (0, 1, 5, 9, 13, 17)

#: Number of directions tried for a hand without depth, and number of directions that the fit starts from.
_VIEWS, BEST_VIEWS = 48, 6

#: Bounds of the scale of a start, for landmarks `PALM_MM` long.
_SCALE_BOUNDS = (0.4, 2.5)


def from_palm(chain: JointChain, target: Target) -> State:
    """Rotate and scale the mean hand (B) to the palm's landmarks by Procrustes; their depth must be known."""
    count, palm = len(target.points), list(_PALM)
    joints = _mean_joints(chain, target)
    weight = (target.weight_3d[:, palm] > 0).to(joints)
    import roma  # not needed by a network's refinement, and its import takes a second

    rotation, _, scale = roma.rigid_points_registration(
        joints[palm].expand(count, -1, -1), target.points[:, palm], weight, compute_scaling=True
    )
    scale = scale.clamp(*_SCALE_BOUNDS)
    projected = scale[:, None, None] * (joints @ rotation.mT)[..., :2]
    known = (target.weight_2d > 0).to(projected)[..., None]
    shift = ((target.points[..., :2] - projected) * known).sum(1) / known.sum(1)
    return _state(chain, rotation, scale, shift)


def at_hands(chain: JointChain, hands: HandParameters, target: Target) -> State:
    """Place given hands (B) on landmarks with depth: scales and shift are the least-squares ones."""
    joints = chain.posed(hands).joints_mm
    about = joints - joints.mean(1, keepdim=True)
    points = target.points - target.points.mean(1, keepdim=True)
    power_2d, power_3d = (about[..., :count].square().sum((1, 2)).clamp_min(1e-6) for count in (2, 3))
    scale = ((about * points)[..., :2].sum((1, 2)) / power_2d).clamp(*_SCALE_BOUNDS)
    shift = target.points[..., :2].mean(1) - scale[:, None] * joints[..., :2].mean(1)
    return State(hands, scale.log(), shift, (about * points).sum((1, 2)) / power_3d)


def has_palm_depth(target: Target) -> Tensor:
    """Return whether `from_palm` applies to each hand (B,): four palm landmarks have depth."""
    return (target.weight_3d[:, list(_PALM)] > 0).sum(1) >= 4


def from_views(chain: JointChain, target: Target) -> list[State]:
    """Return the mean hand (B) from the `BEST_VIEWS` directions where it is closest to the landmarks in 2D.

    In-plane rotation, scale and shift are least-squares solutions per direction.
    """
    joints = _mean_joints(chain, target)
    views = _directions(_VIEWS).to(joints)
    flat = (joints @ views.mT)[..., :2]  # (views, 21, 2)
    known = (target.weight_2d > 0).to(flat)[:, None]  # (B, 1, 21)
    total = known.sum(-1)

    def centred(points: Tensor) -> tuple[Tensor, Tensor]:
        """Return points (..., 21, 2) as complex numbers relative to their mean, and the mean."""
        numbers = torch.view_as_complex(points.contiguous())
        mean = (numbers * known).sum(-1) / total
        return (numbers - mean[..., None]) * known, mean

    model, model_mean = centred(flat[None].expand(len(known), -1, -1, -1))
    observed, observed_mean = centred(target.points[:, None, :, :2])
    power = model.abs().square().sum(-1).clamp(min=1e-9)
    factor = (model.conj() * observed).sum(-1) / power
    misfit = (factor[..., None] * model - observed).abs().square().sum(-1)
    states = []
    for view in misfit.topk(BEST_VIEWS, largest=False).indices.unbind(1):
        chosen = factor.gather(1, view[:, None])[:, 0]
        mean = model_mean.gather(1, view[:, None])[:, 0]
        scale = chosen.abs().clamp(*_SCALE_BOUNDS)
        rotation = rotvec_to_rotmat(chosen.angle()[:, None] * torch.tensor([0.0, 0.0, 1.0]).to(joints))
        shift = torch.view_as_real(observed_mean[:, 0] - torch.polar(scale, chosen.angle()) * mean)
        states.append(_state(chain, rotation @ views[view], scale, shift))
    return states


def _mean_joints(chain: JointChain, target: Target) -> Tensor:
    """Return the joints (21, 3) of the mean hand in its rest frame."""
    like = target.points
    mean = HandParameters(
        torch.eye(3).to(like)[None], like.new_zeros(1, chain.pose_dim), like.new_zeros(1, 10)
    )
    return chain.posed(mean).joints_mm[0]


def _state(chain: JointChain, rotation: Tensor, scale: Tensor, shift: Tensor) -> State:
    count = len(scale)
    hands = HandParameters(rotation, scale.new_zeros(count, chain.pose_dim), scale.new_zeros(count, 10))
    return State(hands, scale.log(), shift, scale.clone())


def _directions(count: int) -> Tensor:
    """Return rotations (count, 3, 3) whose third rows are spread evenly on the sphere (Fibonacci lattice)."""
    number = torch.arange(count, dtype=torch.float64)
    z = 1 - (2 * number + 1) / count
    longitude = number * math.pi * (3 - math.sqrt(5))
    ring = (1 - z.square()).sqrt()
    third = torch.stack([ring * longitude.cos(), ring * longitude.sin(), z], -1)
    reference = torch.where(
        z.abs()[:, None] < 0.9, torch.tensor([0.0, 0.0, 1.0]).double(), torch.tensor([1.0, 0.0, 0.0]).double()
    )
    first = torch.nn.functional.normalize(torch.linalg.cross(reference, third), dim=-1)
    return torch.stack([first, torch.linalg.cross(third, first), third], 1)
