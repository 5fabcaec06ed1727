"""Sequences of photos of one moving hand with all their labels: `motion.py` moves, the stages of `hands.py` draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from annotator.hand.model import HandModel
from trainer.keyed_random import Draws, keys
from trainer.synth import camera
from trainer.synth.background import backgrounds
from trainer.synth.colour import lab_to_linear
from trainer.synth.hands import DrawnPhotos, SyntheticHands
from trainer.synth.light import Light, contact_shadow
from trainer.synth.motion import Motions, Moving
from trainer.synth.pool import Pool
from trainer.synth.scene import Scene
from trainer.synth.skin import SkinLook

#: Frames drawn together.
BLOCK = 8

# Keys of the draws of a sequence's look, see `hands.py`, and of its side.
_LOOK, _SIDE = 40, 60
# The background is drawn this much larger than the photo, for the camera to rotate over.
_WIDER = 1.5
# Positions along its way at which a moving hand is seen while the shutter is open.
_SHUTTER = 5


@dataclass(frozen=True, eq=False)
class DrawnFrames:
    """Some frames of a sequence."""

    photos: DrawnPhotos  # of right hands
    time_s: NDArray[np.floating]  # (T,)
    is_right: bool  # false where they are to be mirrored


class Sequences:
    """An endless source of sequences: each depends on the seed and its number alone."""

    def __init__(self, hand: HandModel, size_px: int, seed: int) -> None:
        self.hands = SyntheticHands(hand, size_px, seed)
        scenes = self.hands.scenes
        self.motions = Motions(scenes.layer, scenes.poses, self.hands.figure, seed)

    @torch.no_grad()
    def sequence(self, number: int, frames: int) -> DrawnFrames:
        """Draw a sequence."""
        moving = self.motions.sample(number, frames)
        exposure = self._brightness(number, moving.scene[:1])
        blocks = [slice(first, first + BLOCK) for first in range(0, frames, BLOCK)]
        parts = [
            self._photos(number, moving, slice(rows.start, min(rows.stop, frames)), exposure)
            for rows in blocks
        ]
        photos = DrawnPhotos(
            scene=moving.scene,
            image=torch.cat([part.image for part in parts]),
            hand_mask=torch.cat([part.hand_mask for part in parts]),
            covered=torch.cat([part.covered for part in parts]),
            skin_lab=parts[0].skin_lab[:1].expand(frames, -1, -1),
        )
        side = Draws(keys(self.hands.seed, _SIDE, number)).chance(0.5)
        return DrawnFrames(photos, moving.time_s, bool(side))

    def _draws(self, number: int, stage: int, count: int = 1) -> Draws:
        """Return draws that are the same for `count` frames."""
        return Pool(keys(self.hands.seed, _LOOK + stage, number).expand(count))

    def _brightness(self, number: int, scene: Scene) -> Tensor:
        """Return the mean brightness (1,) of the hand in a frame, to which the whole sequence is exposed."""
        look, light = SkinLook(self._draws(number, 0)), Light(self._draws(number, 1))
        figure, seen = self.hands.drawn(scene, look, light, self._draws(number, 2))
        brightness: Tensor = figure.mean((1, 2, 3)) / seen.cover.mean((1, 2, 3)).clamp(min=1e-3)
        return brightness

    def _photos(self, number: int, moving: Moving, rows: slice, brightness: Tensor) -> DrawnPhotos:
        hands, count = self.hands, rows.stop - rows.start
        size = hands.size_px
        scene = moving.scene[rows]
        look, light = SkinLook(self._draws(number, 0, count)), Light(self._draws(number, 1, count))
        figure, seen = hands.drawn(scene, look, light, self._draws(number, 2, count))
        shadow = contact_shadow(seen.cover, light, self._draws(number, 3, count))
        wide = round(_WIDER * size)
        owner = lab_to_linear(look.base_lab)[:1]
        behind = backgrounds(
            wide, hands.patterns, owner, torch.ones(1, 1, wide, wide), self._draws(number, 4)
        )
        behind = _moved(behind.expand(count, -1, -1, -1), moving.background_shift[rows], size) * shadow
        photo = _smeared(behind + (figure - behind) * seen.cover, moving.blur[rows])
        shot = self._draws(number, 5, count)
        photo = camera.blurred_by_lens(camera.exposed(photo, brightness.expand(count), shot), shot)
        images = []
        for k in range(count):  # each frame has its own noise; everything else is shared
            frame = rows.start + k
            grain = hands.noise.roll((37 * frame, 91 * frame), (0, 1))
            images.append(camera.taken(photo[k : k + 1], grain, self._draws(number, 6)))
        skin_lab = look.base_lab[:, None] + hands.skin_map[hands.vertex_texel] @ look.mix
        return DrawnPhotos(
            scene=scene,
            image=(torch.cat(images) * 255).round().byte(),
            hand_mask=(seen.hand_cover > 0.5).byte() * 255,
            covered=torch.zeros(count, 1, size, size),
            skin_lab=skin_lab,
        )


def _moved(wide: Tensor, shift: Tensor, size_px: int) -> Tensor:
    """Cut (B, 3, S, S) out of wider pictures, moved by `shift` (B, 2) half photos."""
    centre = (torch.arange(size_px) * 2 + 1) / size_px - 1
    grid = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1)[None] + shift[:, None, None]
    return F.grid_sample(wide, grid / _WIDER, padding_mode="reflection", align_corners=False)


def _smeared(photo: Tensor, blur: Tensor) -> Tensor:
    """Return photos (B, 3, S, S) as seen by a shutter that is open while they move by `blur` (B, 2) half photos."""
    size = photo.shape[-1]
    centre = (torch.arange(size) * 2 + 1) / size - 1
    grid = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1)[None]
    total = torch.zeros_like(photo)
    for at in torch.linspace(-0.5, 0.5, _SHUTTER):
        moved = grid + at * blur[:, None, None]
        total += F.grid_sample(photo, moved, padding_mode="border", align_corners=False)
    return total / _SHUTTER
