"""Unlit colours of surfaces: skin from its map, cloth and objects from patterns."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.keyed_random import Draws
from trainer.synth.background import room_colours
from trainer.synth.colour import lab_to_linear
from trainer.synth.figure import MATERIALS, OBJECT_A, SLEEVE, Figure
from trainer.synth.objects import FINGER
from trainer.synth.patterns import COUNT, SIDE
from trainer.synth.scene import Scene
from trainer.synth.skin import TEXELS, SkinLook
from trainer.synth.surface_samples import Samples


class Cloth:
    """Appearance of sleeves, watches and objects of B photos: two colours in a pattern."""

    def __init__(self, scene: Scene, look: SkinLook, draws: Draws) -> None:
        count = len(scene)
        two = room_colours(draws, 2 * MATERIALS).view(count, MATERIALS, 2, 3)
        # Other fingers have the colour of skin.
        other_skin = lab_to_linear(look.base_lab + 4 * draws.normal(3))[:, None, None]
        is_finger = (scene.object_kind == FINGER)[:, :, None, None]
        two[:, OBJECT_A:] = torch.where(is_finger, other_skin, two[:, OBJECT_A:])
        plain = draws.uniform(MATERIALS) < 0.45
        two[:, :, 1] = torch.where(plain[..., None], two[:, :, 0], two[:, :, 1])
        self.two = two.view(-1, 2, 3)  # (B * MATERIALS, 2, 3) linear RGB
        self.pattern = (draws.uniform(MATERIALS) * COUNT).long().view(-1)
        self.repeat = torch.exp(draws.uniform(MATERIALS, low=-0.5, high=1.2)).view(-1)
        self.sheen = draws.uniform(MATERIALS, high=1.5)
        self.sheen[:, SLEEVE] = 0
        self.sheen = self.sheen.view(-1)


def painted(
    figure: Figure, skin_map: Tensor, patterns: Tensor, look: SkinLook, cloth: Cloth, seen: Samples
) -> tuple[Tensor, Tensor]:
    """Return unlit linear RGB (3, N) and sheen (N,) of every sample."""
    albedo = torch.empty(len(seen.face), 3, device=seen.face.device)
    sheen = torch.ones(len(seen.face), device=seen.face.device)
    is_skin = seen.face < figure.skin_face_count
    skin = is_skin.nonzero().squeeze(1)
    cell = (seen.weights[:2].index_select(1, skin) * TEXELS).long().clamp(0, TEXELS - 1)
    texel = (seen.face.index_select(0, skin) * TEXELS + cell[0]) * TEXELS + cell[1]
    counts = torch.bincount(seen.photo.index_select(0, skin), minlength=len(seen.count_of_photo)).tolist()
    albedo[skin] = lab_to_linear(look.lab(skin_map.index_select(0, texel), counts))

    other = (~is_skin).nonzero().squeeze(1)
    vertex_count = len(figure.uv)
    material = figure.material.index_select(0, seen.face.index_select(0, other))
    own = seen.photo.index_select(0, other) * MATERIALS + material
    corners = seen.corners.index_select(1, other) % vertex_count
    weights = seen.weights.index_select(1, other)
    u, v = ((weights * figure.uv[:, k][corners]).sum(0) * cloth.repeat[own] * SIDE for k in range(2))
    ink = patterns.view(-1)[(cloth.pattern[own] * SIDE + v.long() % SIDE) * SIDE + u.long() % SIDE]
    ends = cloth.two.index_select(0, own)
    albedo[other] = torch.lerp(ends[:, 0], ends[:, 1], ink[:, None])
    sheen[other] = cloth.sheen[own]
    return albedo.t().contiguous(), sheen
