"""Objects in, in front of or behind a hand: boxes, cans, balls, sticks, cards, other fingers."""

from __future__ import annotations

import math

import numpy as np
import roma
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.keyed_random import Draws
from trainer.synth.forearm import tube_faces

#: All objects share one mesh: rings of segments from pole to pole, moved onto the surface.
RINGS, SEGMENTS = 9, 16
VERTICES = RINGS * SEGMENTS

# Half sizes in mm (two across, one along), exponents (along, around: 1 is round, 0 square), share with taper.
_KINDS = {
    "box": ((25, 18, 45), (0.1, 0.1), 0.0),
    "can": ((28, 28, 60), (0.1, 1.0), 0.0),
    "ball": ((30, 30, 30), (1.0, 1.0), 0.0),
    "stick": ((6, 6, 90), (0.2, 1.0), 0.0),
    "card": ((36, 5, 70), (0.15, 0.15), 0.0),
    "finger": ((8, 8, 45), (0.45, 1.0), 0.1),
    "cup": ((32, 32, 45), (0.1, 1.0), 0.25),
}
NAMES = tuple(_KINDS)
FINGER = NAMES.index("finger")
#: Kinds with edges, shaded flat per face.
ANGULAR = tuple(exponents[1] < 0.5 for _, exponents, _ in _KINDS.values())
_SHARES = [1.0, 1.2, 0.8, 1.5, 1.2, 1.0, 0.8]

#: Positions of an object: absent, in the hand, in front of it, behind it.
NOWHERE, HELD, BEFORE, BEHIND = range(4)


def object_faces(first: int) -> np.ndarray:
    """Return faces (F, 3) of the object whose vertices start at `first`, counter-clockwise from outside."""
    inwards = tube_faces(first + np.arange(VERTICES).reshape(RINGS, SEGMENTS))
    return np.ascontiguousarray(inwards[:, ::-1])


def object_uv() -> Tensor:
    """Return pattern coordinates (VERTICES, 2): around (forth and back) and along."""
    around = 1 - (torch.arange(SEGMENTS) / SEGMENTS * 2 - 1).abs()
    along = torch.linspace(0, 1, RINGS)
    return torch.stack([around.expand(RINGS, -1), along[:, None].expand(-1, SEGMENTS)], -1).flatten(0, 1)


class Objects:
    """Shapes of B objects in their own axes, before placement."""

    def __init__(self, draws: Draws) -> None:
        """Draw kinds and sizes."""
        device = draws.key.device
        self.kind = draws.choice(_SHARES)
        size, exponents, taper = (
            torch.tensor([_KINDS[name][k] for name in NAMES], dtype=torch.float32, device=device)
            for k in range(3)
        )
        scale = torch.exp2(draws.uniform(1, low=-0.8, high=0.6)) * torch.exp2(
            draws.uniform(3, low=-0.4, high=0.4)
        )
        scale[:, 1] = torch.where(exponents[self.kind, 1] == 1, scale[:, 0], scale[:, 1])
        self.half_mm = size[self.kind] * scale
        self._exponents = exponents[self.kind]
        self._taper = taper[self.kind] * torch.where(draws.uniform() < 0.5, 1.0, -1.0)

    def vertices_mm(self) -> Tensor:
        """Return vertices (B, VERTICES, 3), with the long axis along z."""
        device = self.kind.device
        up = torch.linspace(-math.pi / 2, math.pi / 2, RINGS, device=device)[None, :, None]
        angle = (torch.arange(SEGMENTS, device=device) * (2 * math.pi / SEGMENTS))[None, None]
        along, around = self._exponents[:, :1, None], self._exponents[:, 1:, None]
        z = _power(up.sin(), along)
        radius = _power(up.cos().clamp(min=0), along) * (1 + self._taper[:, None, None] * z)
        unit = torch.stack(
            torch.broadcast_tensors(
                radius * _power(angle.cos(), around), radius * _power(angle.sin(), around), z
            ),
            -1,
        )
        return (unit * self.half_mm[:, None, None]).flatten(1, 2)


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    return base.sign() * base.abs().clamp(min=1e-6) ** exponent


def place(
    objects: Objects,
    where: Tensor,
    joints_mm: Tensor,
    target_mm: Tensor,
    cam_t_mm: Tensor,
    spare_mm: Tensor,
    draws: Draws,
) -> Tensor:
    """Return vertices (B, VERTICES, 3), camera axes, wrist-relative.

    Args:
        objects: the shapes; held ones are resized to fit between palm and fingers.
        where: (B,) NOWHERE, HELD, BEFORE or BEHIND.
        joints_mm: (B, 21, 3) of the hand.
        target_mm: (B, 3) a point of the hand that an object BEFORE it hides.
        cam_t_mm: (B, 3) of the wrist, camera axes.
        spare_mm: (B,) the apparent size of the hand.
        draws: for the exact position.
    """
    rotation = roma.unitquat_to_rotmat(F.normalize(draws.normal(4), dim=1))
    knuckles, tips = joints_mm[:, [5, 9, 13, 17]], joints_mm[:, [8, 12, 16, 20]]
    across = F.normalize(knuckles[:, 0] - knuckles[:, 3], dim=1)
    along = F.normalize(knuckles.mean(1) - joints_mm[:, 0], dim=1)
    inwards = F.normalize(torch.linalg.cross(across, along), dim=1)  # out of a right hand's palm

    # Bent fingers leave room for a radius, flat ones for any object on top.
    height = ((tips - knuckles) * inwards[:, None]).sum(-1).amax(1)
    room = torch.where(height > 28, (height - 18) / 2, objects.half_mm[:, 1].clamp(max=40)).clamp(4, 45)
    share = torch.where(where == HELD, (room / objects.half_mm[:, :2].amin(1)).clamp(max=1.5), 1.0)
    # An object in front hides only a part of the hand.
    nearer = draws.uniform(low=0.06, high=0.4)
    least = (0.17 * spare_mm / objects.half_mm[:, :2].amin(1)).clamp(max=1) * (1 - nearer)
    vertices = objects.vertices_mm() * torch.where(where == BEFORE, least, share)[:, None, None]

    tilt = F.normalize(across + 0.25 * draws.normal(3), dim=1)
    side = F.normalize(torch.linalg.cross(inwards, tilt), dim=1)
    grip = torch.stack([side, torch.linalg.cross(tilt, side), tilt], -1)
    rotation = torch.where((where == HELD)[:, None, None], grip, rotation)
    palm = 0.75 * knuckles.mean(1) + 0.25 * joints_mm[:, [6, 10, 14, 18]].mean(1)
    held = (
        palm + inwards * (room + 9)[:, None] + along * (draws.normal(1) * 6 + 4) + tilt * draws.normal(1) * 25
    )
    to_camera = -cam_t_mm - target_mm
    share_of_way = torch.where(where == BEFORE, nearer, draws.uniform(low=-0.6, high=-0.25))[:, None]
    beside = spare_mm[:, None] * 0.35 * draws.normal(3)
    elsewhere = (
        target_mm + to_camera * share_of_way + beside * torch.where(where == BEFORE, 0.3, 1.5)[:, None]
    )
    centre = torch.where((where == HELD)[:, None], held, elsewhere)
    vertices = vertices @ rotation.transpose(1, 2) + centre[:, None]
    return torch.where((where == NOWHERE)[:, None, None], centre[:, None], vertices)
