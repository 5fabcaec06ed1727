"""Motion of a synthetic hand and its camera: gestures, rotations, positions, objects before the hand. No pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor

from annotator.hand.layer import HandLayer
from trainer.keyed_random import Draws, keys
from trainer.synth import objects
from trainer.synth.figure import Figure
from trainer.synth.forearm import forearms
from trainer.synth.objects import BEFORE, HELD, NOWHERE, Objects
from trainer.synth.poses import Poses
from trainer.synth.scene import Scene, draw_hands

Floats = NDArray[np.floating]

#: Frames per second.
RATE_HZ = 30.0

#: Seconds from one gesture to the next, and the share of that time in which the fingers rest.
_GESTURE_S, _REST = (0.4, 1.1), 0.35

#: Standard deviations of the hand's rotation, degrees, of its position, shares of the photo, and of the logarithm of
#: its distance.
_ROTATION_DEG, _POSITION, _DEPTH = 22.0, 0.13, 0.08

#: Standard deviation of the camera's slow rotation and of its tremor, degrees.
_PAN_DEG, _TREMOR_DEG = 3.0, 0.08

#: Box of the hand over the photo's side, and focal length over it.
_FILL, _FOCAL = (0.38, 0.55), (1.05, 1.35)

#: Shares of sequences in which an object passes in front of the hand, or is held; seconds of passing.
_PASSES, _HOLDS, _PASS_S = 0.75, 0.2, (0.25, 0.8)

# The share of the time between frames in which the shutter is open.
_OPEN = 0.4

_STAGE = 20  # keys of a sequence's draws, apart from the stages of `hands.py`


@dataclass(frozen=True, eq=False)
class Moving:
    """T frames of one moving hand, a right one."""

    scene: Scene  # of T photos
    time_s: Floats  # (T,)
    background_shift: Tensor  # (T, 2) half photos, by the camera's rotation
    blur: Tensor  # (T, 2) half photos that the hand moves while the shutter is open


class Motions:
    """Draws moving hands; sequence i depends on the seed and i alone."""

    def __init__(self, layer: HandLayer, poses: Poses, figure: Figure, seed: int) -> None:
        self.layer, self.poses, self.figure, self.seed = layer, poses, figure, seed

    def sample(self, sequence: int, frames: int) -> Moving:
        """Draw `frames` frames of a sequence."""
        draws = Draws(keys(self.seed, _STAGE, sequence))
        still = draw_hands(self.poses, self.layer, draws)  # shape, view and the wrist's bend
        chance = np.random.default_rng([self.seed, _STAGE, sequence])
        time_s = np.arange(frames) / RATE_HZ
        angles = self._angles(sequence, time_s, chance)
        pan = np.radians(
            _PAN_DEG * _wander(time_s, 2, 1.2, chance) + _TREMOR_DEG * _wander(time_s, 2, 0.1, chance)
        )
        camera = _matrices(np.concatenate([-pan[:, 1:], pan[:, :1], 0 * pan[:, :1]], 1))
        sway = _matrices(np.radians(_ROTATION_DEG) * _wander(time_s, 3, 0.9, chance))
        rotation = camera @ sway @ still.rotations[:, 0]
        rotations = torch.cat([rotation[:, None], self.poses.rotations(angles)], 1)
        betas = still.betas.expand(frames, -1)
        vertices, joints = self.layer(rotations, betas)
        focal, cam_t = _positions(vertices, time_s, camera, chance)
        scene = self._scene(
            draws,
            still.bend.expand(frames, -1),
            rotations,
            betas,
            angles,
            vertices,
            joints,
            cam_t,
            focal,
            chance,
        )
        shift = torch.from_numpy(focal * np.tan(pan)).float()
        middle = scene.project(joints).mean(1).numpy()
        moved = np.gradient(middle, axis=0) if frames > 1 else 0 * middle
        return Moving(scene, time_s, shift, _OPEN * torch.from_numpy(moved))

    def _angles(self, sequence: int, time_s: Floats, chance: np.random.Generator) -> Tensor:
        """Return finger angles (T, 5, 4) that rest at one pose after the other and move smoothly between them."""
        starts = [0.0]
        while starts[-1] <= time_s[-1]:
            starts.append(starts[-1] + chance.uniform(*_GESTURE_S))
        poses = self.poses.angles(
            Draws(keys(self.seed, _STAGE + 1, sequence, torch.arange(len(starts) + 1)))
        ).numpy()
        at = np.searchsorted(starts, time_s, side="right") - 1
        lengths = np.diff([*starts, starts[-1] + 1.0])
        way = np.clip((time_s - np.array(starts)[at]) / lengths[at] / (1 - _REST), 0, 1)
        way = way**3 * (10 - 15 * way + 6 * way**2)
        mixed = poses[at] + way[:, None, None] * (poses[at + 1] - poses[at])
        return torch.from_numpy(mixed).float()

    def _scene(
        self,
        draws: Draws,
        bend: Tensor,
        rotations: Tensor,
        betas: Tensor,
        angles: Tensor,
        vertices: Tensor,
        joints: Tensor,
        cam_t: Tensor,
        focal: float,
        chance: np.random.Generator,
    ) -> Scene:
        """Add forearm, sleeve and objects."""
        frames, rotation = len(vertices), rotations[:, 0]
        sleeve = chance.choice([math.inf, chance.uniform(5, 90)], p=[0.6, 0.4])
        forearm = (rotation @ roma.rotvec_to_rotmat(bend))[:, :, 0]
        reach = (cam_t[:, 2] - 110.0) / (-forearm[:, 2]).clamp(min=1e-3)
        ones = torch.ones(frames)
        tube = forearms(
            vertices[:, self.figure.edge] @ rotation, bend, sleeve * ones, math.inf * ones, 20 * ones, reach
        )
        size = (vertices.amax(1) - vertices.amin(1))[:, :2].amax(1)
        object_meshes, kinds, locations = [], [], []
        for where, share in ((HELD, _HOLDS), (BEFORE, _PASSES)):
            same = Draws(draws.key.expand(frames) + where)
            shape = Objects(same)
            location = torch.full((frames,), where if chance.random() < share else NOWHERE)
            moved = torch.zeros(frames, 3)
            if where == BEFORE:
                location, moved = _passing(location, size, chance)
            target = vertices[:, chance.integers(vertices.shape[1])]
            object_meshes.append(
                objects.place(shape, location, joints, target, cam_t, size, same) + moved[:, None]
            )
            kinds.append(shape.kind)
            locations.append(location)
        return Scene(
            pose=roma.rotmat_to_rotvec(rotations).flatten(1),
            betas=betas,
            angles=angles,
            vertices_mm=vertices,
            joints3d_mm=joints,
            others_mm=torch.cat([tube @ rotation.transpose(1, 2), *object_meshes], 1),
            object_kind=torch.stack(kinds, 1),
            object_location=torch.stack(locations, 1),
            cam_t_mm=cam_t,
            focal=torch.full((frames,), focal),
            ray=torch.zeros(frames, 2),
        )


def _passing(location: Tensor, size_mm: Tensor, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return where (T,) an object passes in front of the hand, and its offset (T, 3)."""
    frames = len(location)
    length = max(2, round(chance.uniform(*_PASS_S) * RATE_HZ))
    start = chance.integers(0, max(frames - length, 1))
    way = (np.arange(frames) - start) / length
    direction = chance.uniform(0, 2 * math.pi)
    moved = (2 * way - 1)[:, None] * np.array([math.cos(direction), math.sin(direction), 0.0])
    passes = torch.from_numpy((way >= 0) & (way <= 1))
    return torch.where(passes, location, NOWHERE), torch.from_numpy(moved).float() * size_mm[:, None]


def _positions(
    vertices_mm: Tensor, time_s: Floats, camera: Tensor, chance: np.random.Generator
) -> tuple[float, Tensor]:
    """Return the focal length in half photos and where the wrist stands (T, 3), the hand inside the photo."""
    focal = 2 * chance.uniform(*_FOCAL)
    planes = vertices_mm.numpy()
    low, high = planes.min(1), planes.max(1)
    extent = (high - low)[:, :2].max()
    depth = (
        focal * extent / (2 * chance.uniform(*_FILL)) * np.exp(_DEPTH * _wander(time_s, 1, 1.0, chance)[:, 0])
    )
    room = 1 - focal * (high - low)[:, :2].max(0) / (2 * depth.min())
    centre = np.clip(2 * _POSITION * _wander(time_s, 2, 0.8, chance), -room.clip(0), room.clip(0))
    # The camera's rotation moves the hand through the photo, too, as far as there is room.
    centre = np.clip(centre + focal * 0.4 * camera.numpy()[:, :2, 2], -room.clip(0), room.clip(0))
    middle = (low + high) / 2
    cam_t = np.concatenate([centre / focal * depth[:, None], depth[:, None]], 1) - middle * [1, 1, 0]
    # The hand's extent may switch from one vertex to another; the position must stay smooth.
    spline = CubicSpline(time_s[::6], cam_t[::6]) if len(time_s) > 12 else None
    return focal, torch.from_numpy(cam_t if spline is None else spline(time_s)).float()


def _matrices(rotvec: Floats) -> Tensor:
    return roma.rotvec_to_rotmat(torch.from_numpy(rotvec).float())


def _wander(time_s: Floats, channels: int, period_s: float, chance: np.random.Generator) -> Floats:
    """Return a smooth walk (T, channels) of unit variance about 0, its knots `period_s` apart on average."""
    knots = [-period_s]
    while knots[-1] < time_s[-1] + period_s:
        knots.append(knots[-1] + period_s * chance.uniform(0.6, 1.4))
    path: Floats = CubicSpline(knots, chance.normal(size=(len(knots), channels)))(time_s)
    return path
