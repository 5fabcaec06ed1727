"""Train prior-net in inverse kinematics: a hand's pose and shape from its landmarks alone. Not in the paper.

Hands are drawn (`synth/scene.py`) but not rendered. Their joints, seen through the camera, are the input: rotated
upright as crops are, and disturbed as a detector errs. A few minutes show more poses and views than photos will.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotator.coordinates import axes_of_ray, upright_square
from annotator.hand.few_vertices import few_vertices
from annotator.hand.layer import HandLayer
from annotator.hand.model import HandModel
from annotator.model.landmarker.network import normalised
from annotator.model.prior_net import PriorHand, PriorNet
from trainer import losses
from trainer.keyed_random import Draws, keys
from trainer.optimizer import cosine_rate
from trainer.synth.pool import Pool
from trainer.synth.poses import Poses
from trainer.synth.scene import DrawnHands, draw_hands

#: Vertices that stand for the mesh.
VERTICES = 64


@dataclass(frozen=True)
class NoiseConfig:
    """Simulated errors of a detector's landmarks and of crops; lengths are those of the hand.

    Errors of whole fingers are off: with them, a network follows real landmarks less closely, and is no better on drawn
    ones with such errors.
    """

    joint_mm: tuple[float, float, float] = (3.0, 3.0, 6.0)  # std of each joint's x, y and depth
    # A finger may also err as a whole: not at all at the palm, with a std of `finger` times `joint_mm` at its tip.
    finger: float = 0.0
    wrong: float = 0.0  # share of hands with one finger that errs `wrong_times` as much
    wrong_times: float = 5.0
    level: float = 0.0  # std of the logarithm of a hand's level, which scales all of the above
    depth: float = 0.0  # std of the logarithm of the depth's scale
    # Crops are upright to `rotation_deg` (std), but for a share that may be rotated by up to `most_rotation_deg`.
    rotation_deg: float = 15.0
    any_rotation: float = 0.3
    most_rotation_deg: float = 60.0


@dataclass(frozen=True)
class InverseKinematicsConfig:
    """A training of inverse kinematics."""

    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    aligned: float = 5.0  # weight of `losses.aligned_loss` beside the distance of vertices
    pose: float = 0.01  # of half the squared pose coefficients
    shape: float = 0.02  # of half the squared betas
    noise: NoiseConfig = NoiseConfig()


@dataclass(frozen=True, eq=False)
class LandmarkBatch:
    """B synthetic hands in the axes of a crop, millimetres, wrist-relative, and landmarks of them."""

    landmarks_mm: Tensor  # (B, 21, 3) with errors; depth relative to the wrist
    joints3d_mm: Tensor  # (B, 21, 3)
    vertices_mm: Tensor  # (B, V, 3)
    rotations: Tensor  # (B, 16, 3, 3)
    betas: Tensor  # (B, 10)


class DrawnLandmarks:
    """An endless source: hand i depends on the seed and i alone."""

    def __init__(self, hand: HandModel, seed: int, noise: NoiseConfig = NoiseConfig()) -> None:
        """Draw hands of this model; `vertices_mm` are those of its layer."""
        self.layer, self.poses = HandLayer(hand), Poses(hand, seed, torch.device("cpu"))
        self.seed, self.noise = seed, noise

    @torch.no_grad()
    def hands(self, indices: Tensor) -> LandmarkBatch:
        """Return hands (n,) by their numbers."""
        hands = draw_hands(self.poses, self.layer, Pool(keys(self.seed, 0, indices)))
        draws = Draws(keys(self.seed, 1, indices))
        seen_mm, axes = seen_joints(hands)
        rotation = _depth_rotations(_angles_upright(seen_mm, draws, self.noise))
        to_crop = rotation @ axes.mT
        joints, vertices = (points @ to_crop.mT for points in (hands.joints3d_mm, hands.vertices_mm))
        rotations = torch.cat([to_crop[:, None] @ hands.rotations[:, :1], hands.rotations[:, 1:]], 1)
        landmarks_mm = with_errors(seen_mm @ rotation.mT, draws, self.noise)
        return LandmarkBatch(landmarks_mm, joints, vertices, rotations, hands.betas)


def seen_joints(hands: DrawnHands) -> tuple[Tensor, Tensor]:
    """Project joints as image landmarks, and return them with the axes of crops around them.

    Landmarks (B, 21, 3) have the photo's x and y in millimetres at the wrist's distance. Their depth is along the
    crop's ray, relative to the wrist. Axes (B, 3, 3) are crop axes (`annotator.coordinates`).
    """
    moved = hands.joints3d_mm + hands.cam_t_mm[:, None]
    distance = hands.cam_t_mm[:, None, 2:]
    xy = moved[..., :2] / moved[..., 2:] * distance
    axes = axes_of_ray((xy.amin(1) + xy.amax(1)) / 2 / distance[:, 0])
    return torch.cat([xy, (hands.joints3d_mm @ axes)[..., 2:]], -1), axes


def with_errors(points_mm: Tensor, draws: Draws, noise: NoiseConfig) -> Tensor:
    """Disturb landmarks (B, 21, 3) as a detector errs."""
    count = len(points_mm)
    std = points_mm.new_tensor(noise.joint_mm) * (noise.level * draws.normal(1, 1)).exp()
    # The wrist, then from knuckle to tip of each finger.
    along = torch.arange(4) / 3
    of_finger = noise.finger * draws.normal(5, 1, 3)
    chosen = F.one_hot((draws.uniform() * 5).long(), 5) * draws.chance(noise.wrong)[:, None]
    of_finger = of_finger * (1 + (noise.wrong_times - 1) * chosen[..., None, None])
    off = F.pad((of_finger * along[:, None]).flatten(1, 2), (0, 0, 1, 0)) + draws.normal(21, 3)
    depth = (noise.depth * draws.normal(1, 1)).exp()
    scale = torch.cat([torch.ones(count, 1, 2), depth], -1)
    return points_mm * scale + off * std


def _angles_upright(points_mm: Tensor, draws: Draws, noise: NoiseConfig) -> Tensor:
    """Return the angles (B,) in the photo that put hands upright, radians, but for errors of the crop."""
    upright = torch.from_numpy(upright_square(points_mm[..., :2].numpy()).rotation_rad).to(points_mm)
    nearly = draws.normal() * noise.rotation_deg
    anyhow = draws.uniform(low=-noise.most_rotation_deg, high=noise.most_rotation_deg)
    return torch.deg2rad(torch.where(draws.chance(noise.any_rotation), anyhow, nearly)) - upright


def _depth_rotations(angle: Tensor) -> Tensor:
    """Return the rotations (B, 3, 3) about the depth axis, from x towards y."""
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero, zero, zero, one]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def hand_loss(hand: PriorHand, truth: LandmarkBatch, config: InverseKinematicsConfig) -> Tensor:
    """Return the loss (B,) of hands: root-relative vertices, joints after Procrustes, and a weak prior."""
    vertices = (hand.vertices_mm - truth.vertices_mm).norm(dim=-1).mean(1) / losses.CM
    aligned = losses.aligned_loss(hand.joints3d_mm, truth.joints3d_mm).mean((1, 2))
    pose, shape = (values.square().mean(1) / 2 for values in (hand.coefficients, hand.betas))
    return vertices + config.aligned * aligned + config.pose * pose + config.shape * shape


def train_inverse_kinematics(
    prior_net: PriorNet,
    hand: HandModel,
    steps: int,
    seed: int = 0,
    config: InverseKinematicsConfig = InverseKinematicsConfig(),
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train `prior_net.ik` on synthetic joints, in place; nothing else of the network changes.

    Args:
        prior_net: on the CPU, made with `landmarks`.
        hand: the hand model of its layer.
        steps: of `config.batch_size` fresh hands each.
        seed: of the hands.
        config: the training's settings.
        on_step: is called after each step with its number and mean loss.
    """
    few = few_vertices(hand, VERTICES)
    source = DrawnLandmarks(few, seed, config.noise)
    with torch.random.fork_rng(devices=[]):
        solver = PriorNet(1, few, source.layer, landmarks=True)
    solver.ik = ik = prior_net.ik
    assert ik is not None
    optimizer = torch.optim.Adam(ik.parameters(), lr=config.learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = cosine_rate(config.learning_rate, step, steps, config.warmup_steps)
        truth = source.hands(torch.arange(config.batch_size) + step * config.batch_size)
        loss = hand_loss(solver.from_landmarks(normalised(truth.landmarks_mm)), truth, config).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(ik.parameters(), 1.0)
        optimizer.step()
        on_step(step + 1, float(loss.detach()))
