"""Sequences of photos of one moving hand with all their labels: `motion.py` moves, the stages of `hands.py` draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from annotator.hand.model import HandModel
from trainer.keyed import Draws, keys
from trainer.synth import camera
from trainer.synth.background import backgrounds
from trainer.synth.colour import lab_to_linear
from trainer.synth.hands import Photos, SyntheticHands
from trainer.synth.light import Light, contact_shadow
from trainer.synth.motion import Motions
from trainer.synth.pool import Pool
from trainer.synth.skin import SkinLook

#: Frames drawn together.
BLOCK = 8

# What the look of a sequence draws from, see `hands.py`; its side.
_LOOK, _SIDE = 40, 60
# The background is drawn this much larger than the photo, for the camera to turn over.
_WIDER = 1.5
# Places along its way at which a moving hand is seen while the shutter is open.
_SHUTTER = 5


@dataclass(frozen=True, eq=False)
class Drawn:
    """Some frames of a sequence."""

    photos: Photos  # of right hands
    time_s: NDArray[np.floating]  # (T,)
    is_right: bool  # false where they are to be mirrored


class Sequences:
    """An endless source of sequences: each depends on the seed and its number alone."""

    def __init__(self, hand: HandModel, size_px: int, seed: int) -> None:
        self.hands = SyntheticHands(hand, size_px, seed)
        scenes = self.hands.scenes
        self.motions = Motions(scenes.layer, scenes.poses, self.hands.figure, seed)

    @torch.no_grad()
    def sequence(self, number: int, frames: int) -> Drawn:
        """Draw a sequence."""
        moving = self.motions.sample(number, frames)
        blocks = [slice(first, first + BLOCK) for first in range(0, frames, BLOCK)]
        parts = [
            self._photos(number, moving.scene[rows], moving.background_shift[rows], moving.blur[rows], rows.start)
            for rows in blocks
        ]
        photos = Photos(
            moving.scene,
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("image", "hand_mask", "covered")),
            parts[0].skin_lab[:1].expand(frames, -1, -1),
        )
        side = Draws(keys(self.hands.seed, _SIDE, number)).chance(0.5)
        return Drawn(photos, moving.time_s, bool(side))

    def _photos(self, number: int, scene, shift: Tensor, blur: Tensor, first: int) -> Photos:  # type: ignore[no-untyped-def]
        hands, count = self.hands, len(scene)
        size = hands.size_px

        def draws(stage: int) -> Draws:
            """The same for every frame."""
            return Pool(keys(hands.seed, _LOOK + stage, number).expand(count))

        look, light = SkinLook(draws(0)), Light(draws(1))
        figure, seen = hands._drawn(scene, look, light, draws(2))
        behind_draws = draws(3)
        room = contact_shadow(seen.cover, light, behind_draws)
        wide = round(_WIDER * size)
        full_light = torch.ones(1, 1, wide, wide)
        one = Pool(keys(hands.seed, _LOOK + 4, number))
        owner = lab_to_linear(look.base_lab)
        behind = backgrounds(wide, hands.patterns, owner[:1], full_light, one)
        behind = _moved(behind.expand(count, -1, -1, -1), shift, size) * room
        photo = behind + (figure - behind) * seen.cover
        brightness = figure.mean((1, 2, 3)) / seen.cover.mean((1, 2, 3)).clamp(min=1e-3)
        shot = draws(5)
        # Exposure follows the whole sequence, as a camera's does slowly.
        photo = camera.exposed(_smeared(photo, blur), brightness.mean().expand(count), shot)
        photo = camera.through_lens(photo, shot)
        images = []
        for k in range(count):
            grain = hands.noise.roll((37 * (first + k), 91 * (first + k)), (0, 1))
            one_shot = Pool(keys(hands.seed, _LOOK + 6, number))
            images.append(camera.taken(photo[k : k + 1], grain, one_shot))
        image = (torch.cat(images) * 255).round().byte()
        covered = torch.zeros(count, 1, size, size)
        skin_lab = look.base_lab[:, None] + hands.skin_map[hands.vertex_texel] @ look.mix
        return Photos(scene, image, (seen.hand_cover > 0.5).byte() * 255, covered, skin_lab)


def _moved(wide: Tensor, shift: Tensor, size_px: int) -> Tensor:
    """Cut (B, 3, S, S) out of wider pictures, moved by `shift` (B, 2) half photos."""
    centre = (torch.arange(size_px) * 2 + 1) / size_px - 1
    grid = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1)[None] + shift[:, None, None]
    return F.grid_sample(wide, grid / _WIDER, padding_mode="reflection", align_corners=False)


def _smeared(photo: Tensor, blur: Tensor) -> Tensor:
    """Photos (B, 3, S, S) as a shutter sees them that stays open while they move by `blur` (B, 2) half photos."""
    size = photo.shape[-1]
    centre = (torch.arange(size) * 2 + 1) / size - 1
    grid = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1)[None]
    total = torch.zeros_like(photo)
    for at in torch.linspace(-0.5, 0.5, _SHUTTER):
        moved = grid + at * blur[:, None, None]
        total += F.grid_sample(photo, moved, padding_mode="border", align_corners=False)
    return total / _SHUTTER
