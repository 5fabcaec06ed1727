"""Scenes of synthetic photos: hands, forearms, objects and the camera, without pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import roma
import torch
import torch.nn.functional as F
from torch import Tensor

from annotator.coordinates import axes_of_ray
from annotator.hand.layer import HandLayer
from annotator.hand.model import HandModel
from annotator.model.prior_net import UPRIGHT
from annotator.photos.crops import BOX_PADDING
from trainer.keyed_random import Draws, keys
from trainer.synth import objects
from trainer.synth.figure import Figure
from trainer.synth.forearm import forearms
from trainer.synth.objects import Objects
from trainer.synth.poses import Poses

#: Range from lens to hand, mm; uniform on a logarithmic scale.
DISTANCE_MM = (250.0, 1500.0)

#: Range of the longer side of the hand's box over the photo's side.
FILL = (0.8 / BOX_PADDING, 1.25 / BOX_PADDING)

#: Share of photos cut from a wide-angle photo off its optical axis, and the range of the offset.
OFF_AXIS_SHARE, OFF_AXIS_DEG = 0.3, (4.0, 35.0)

#: Shares of views; the rest have any rotation.
VIEWED_UPRIGHT = 0.6

# Yaw of palm, back, thumb's side and little finger's side towards the camera, and their shares.
_YAW_DEG, _YAW_SHARES = (0.0, 180.0, 90.0, -90.0), [0.36, 0.36, 0.14, 0.14]
# A forearm that points straight at the camera would hide the hand.
_NEAREST_FOREARM = -0.6
# Maximum views tried to avoid that; then the best one is used.
_TRIES = 8
_BARE, _NO_BAND = 0.6, 0.85
# Minimum distance of the wrist and of the forearm's axis from the lens.
_NEAR_WRIST_MM, _NEAR_ARM_MM = 210.0, 110.0
# Random stream of the position in a wide-angle photo, separate so that other draws do not change.
_POSITION = 1
# Probabilities of positions of the first and second object (absent, held, in front, behind).
_WHERE_A, _WHERE_B = [0.58, 0.15, 0.12, 0.15], [0.73, 0.0, 0.12, 0.15]


@dataclass(frozen=True, eq=False)
class Scene:
    """B scenes with a right hand each: camera axes, wrist-relative, millimetres."""

    pose: Tensor  # (B, 48)
    betas: Tensor  # (B, 10)
    angles: Tensor  # (B, 5, 4) of the fingers, degrees, see `annotator.hand.anatomy`
    vertices_mm: Tensor  # (B, V, 3)
    joints3d_mm: Tensor  # (B, 21, 3)
    others_mm: Tensor  # (B, N - V, 3) forearm, sleeve, watch, objects
    object_kind: Tensor  # (B, 2) indices of `objects.NAMES`
    object_location: Tensor  # (B, 2) NOWHERE, HELD, BEFORE, BEHIND
    cam_t_mm: Tensor  # (B, 3) the wrist before the pinhole
    focal: Tensor  # (B,) half photos
    ray: Tensor  # (B, 2) x / z and y / z of the photo's centre; 0 where it lies on the optical axis

    def __len__(self) -> int:
        return len(self.pose)

    def __getitem__(self, rows: Any) -> Scene:
        return Scene(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def principal(self) -> Tensor:
        """Return the principal point (B, 2) in photo coordinates, often outside the photo."""
        return -self.focal[:, None] * self.ray

    def axes(self) -> Tensor:
        """Return the photos' crop axes (B, 3, 3), `annotator.coordinates`: the photo is the crop."""
        return axes_of_ray(self.ray)

    def project(self, points_mm: Tensor) -> Tensor:
        """Project points (B, N, 3), camera axes, to the photo (B, N, 2), -1 to 1."""
        moved = points_mm + self.cam_t_mm[:, None]
        return self.focal[:, None, None] * moved[..., :2] / moved[..., 2:] + self.principal[:, None]

    def raster_points(self) -> Tensor:
        """Return all N vertices (B, N, 3) for the rasteriser: x and y in the photo, and -1 / z, linear in both."""
        moved = torch.cat([self.vertices_mm, self.others_mm], 1) + self.cam_t_mm[:, None]
        nearness = 1 / moved[..., 2:].clamp(min=1.0)
        seen = self.focal[:, None, None] * moved[..., :2] * nearness + self.principal[:, None]
        return torch.cat([seen, -1000 * nearness], -1)


@dataclass(frozen=True, eq=False)
class DrawnHands:
    """B right hands in front of a pinhole camera: camera axes, wrist-relative, millimetres."""

    rotations: Tensor  # (B, 16, 3, 3) as `HandLayer` takes them
    betas: Tensor  # (B, 10)
    angles: Tensor  # (B, 5, 4) of the fingers, degrees, see `annotator.hand.anatomy`
    bend: Tensor  # (B, 3) of the wrist relative to the forearm, axis-angle, rest frame
    vertices_mm: Tensor  # (B, V, 3)
    joints3d_mm: Tensor  # (B, 21, 3)
    cam_t_mm: Tensor  # (B, 3) the wrist before the pinhole
    focal: Tensor  # (B,) half photos


def draw_hands(poses: Poses, layer: HandLayer, draws: Draws, ray: Tensor | None = None) -> DrawnHands:
    """Draw one hand per key: pose, shape, view and camera.

    `ray` (B, 2) goes through the photo's centre, see `Scene.ray`; default: the optical axis.
    """
    angles = poses.angles(draws)
    betas = draws.normal(10).clamp(-2.5, 2.5)
    # Wrists bend most towards palm and back, and least sideways.
    spread = torch.deg2rad(torch.tensor([0.0, 9.0, 22.0], device=draws.key.device))
    bend = draws.normal(3).clamp(-2.2, 2.2) * spread
    ray = bend.new_zeros(len(bend), 2) if ray is None else ray
    rotation = axes_of_ray(ray) @ _views(bend, draws)
    rotations = torch.cat([rotation[:, None], poses.rotations(angles)], 1)
    vertices, joints = layer(rotations, betas)
    return DrawnHands(rotations, betas, angles, bend, vertices, joints, *_framing(vertices, ray, draws))


class Scenes:
    """A generator of scenes."""

    def __init__(self, hand: HandModel, figure: Figure, seed: int, device: torch.device) -> None:
        self.layer = HandLayer(hand).to(device)
        self.figure = figure
        self.poses = Poses(hand, seed, device)

    def sample(self, draws: Draws) -> Scene:
        """Draw one scene per key."""
        count, device = len(draws), draws.key.device
        ray = _rays(Draws(keys(draws.key, _POSITION)))
        hands = draw_hands(self.poses, self.layer, draws, ray)
        vertices, joints, cam_t, bend = hands.vertices_mm, hands.joints3d_mm, hands.cam_t_mm, hands.bend
        rotation = hands.rotations[:, 0]

        edge = vertices[:, self.figure.edge] @ rotation  # back to the rest frame
        sleeve = draws.uniform(low=5, high=90).masked_fill(draws.chance(_BARE), math.inf)
        band = draws.uniform(low=8, high=45).masked_fill(draws.chance(_NO_BAND), math.inf)
        width = torch.exp2(draws.uniform(low=2.5, high=5.0))
        forearm = (rotation @ roma.rotvec_to_rotmat(bend))[:, :, 0]
        reach = (cam_t[:, 2] - _NEAR_ARM_MM) / (-forearm[:, 2]).clamp(min=1e-3)
        tube = forearms(edge, bend, sleeve, band, width, reach) @ rotation.transpose(1, 2)

        object_meshes, kinds, locations = [], [], []
        size = (vertices.amax(1) - vertices.amin(1))[:, :2].amax(1)
        for shares in (_WHERE_A, _WHERE_B):
            shape, where = Objects(draws), draws.choice(shares)
            target = vertices[
                torch.arange(count, device=device), (draws.uniform() * vertices.shape[1]).long()
            ]
            object_meshes.append(objects.place(shape, where, joints, target, cam_t, size, draws))
            kinds.append(shape.kind)
            locations.append(where)
        return Scene(
            pose=roma.rotmat_to_rotvec(hands.rotations).flatten(1),
            betas=hands.betas,
            angles=hands.angles,
            vertices_mm=vertices,
            joints3d_mm=joints,
            others_mm=torch.cat([tube, *object_meshes], 1),
            object_kind=torch.stack(kinds, 1),
            object_location=torch.stack(locations, 1),
            cam_t_mm=cam_t,
            focal=hands.focal,
            ray=ray,
        )


def _rays(draws: Draws) -> Tensor:
    """Draw positions of photos in the wide-angle photos they are cut from: `Scene.ray` (B, 2), mostly 0."""
    low, high = (math.radians(angle) for angle in OFF_AXIS_DEG)
    off_axis = draws.chance(OFF_AXIS_SHARE)
    tangent = draws.uniform(low=low, high=high).tan() * off_axis
    direction = draws.uniform(high=2 * math.pi)
    return tangent[:, None] * torch.stack([direction.cos(), direction.sin()], -1)


def _views(bend: Tensor, draws: Draws) -> Tensor:
    """Draw global rotations (B, 3, 3), crop axes, with no forearm pointing straight at the camera."""
    device = bend.device
    normal, uniform = draws.normal(_TRIES, 6), draws.uniform(_TRIES, 4)
    edges = torch.tensor(_YAW_SHARES, device=device).cumsum(0)
    side = torch.bucketize(uniform[..., 0] * edges[-1], edges[:-1], right=True)
    yaw = torch.tensor(_YAW_DEG, device=device)[side] + 28 * normal[..., 0]
    # Some hands hang down or enter from any direction.
    roll = torch.where(uniform[..., 2] < 0.25, uniform[..., 1] * 360 - 180, uniform[..., 1] * 140 - 70)
    euler = torch.stack([roll, 20 * normal[..., 1], yaw], -1)
    upright = roma.euler_to_rotmat("ZXY", euler.flatten(0, 1), degrees=True).view(*euler.shape[:2], 3, 3)
    upright = upright @ torch.tensor(UPRIGHT, device=device)
    anyhow = roma.unitquat_to_rotmat(F.normalize(normal[..., 2:], dim=-1))
    views = torch.where((uniform[..., 3] < VIEWED_UPRIGHT)[..., None, None], upright, anyhow)
    forearm = roma.rotvec_to_rotmat(bend)[:, :, 0]
    depth = (views[:, :, 2] * forearm[:, None]).sum(-1)
    # The first valid one, else the best.
    rank = torch.where(depth > _NEAREST_FOREARM, 10 - torch.arange(_TRIES, device=device), depth)
    return views[torch.arange(len(views), device=device), rank.argmax(1)]


def _framing(vertices_mm: Tensor, ray: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return the wrist's position (B, 3) and the focal length (B,) that put the hand's box inside the photo.

    The hand is at about arm's length. The focal length gives its box the size that a detector's padded box gives; the
    box is not always centred. `ray` (B, 2) goes through the photo's centre.
    """
    near, far = (math.log(d) for d in DISTANCE_MM)
    distance = draws.uniform(low=near, high=far).exp()
    fill = draws.uniform(low=math.log(FILL[0]), high=math.log(FILL[1])).exp()
    aside = draws.uniform(2, low=-0.8, high=0.8)
    planes = vertices_mm.transpose(1, 2).contiguous()
    middle = (planes.amax(2) + planes.amin(2)) / 2
    forward = torch.cat([ray, torch.ones_like(ray[:, :1])], 1)  # a step of depth 1 along the ray
    depth = distance * forward.norm(dim=1).reciprocal()
    depth = (depth - middle[:, 2]).clamp(min=_NEAR_WRIST_MM) + middle[:, 2]
    cam_t = forward * depth[:, None] - middle
    # Moving the hand changes its projected box: three rounds converge to a thousandth.
    for _ in range(3):
        moved = planes + cam_t[..., None]
        seen = moved[:, :2] / moved[:, 2:] - ray[..., None]
        low, high = seen.amin(2), seen.amax(2)
        focal = 2 * fill / (high - low).amax(1)
        room = 1 - focal[:, None] * (high - low) / 2
        off = aside * room / focal[:, None] - (low + high) / 2
        cam_t[:, :2] += off * depth[:, None]
    return cam_t, focal
