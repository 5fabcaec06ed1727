"""Drawn rooms behind real hands whose outline is known: people who were all seen before one wall, seen elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.batch import Batch
from trainer.keyed import Draws, keys
from trainer.synth.background import backgrounds
from trainer.synth.colour import stored
from trainer.synth.patterns import patterns

#: What the draws of a backdrop follow from, beside the example's key.
_STREAM = 2


class Backdrops:
    """Rooms for photos, each from its example's key alone."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.bank = patterns(seed, device)

    def behind(self, images: Tensor, batch: Batch, share: float) -> Tensor:
        """Images (B, 3, S, S) in 0..1, a share of those with a hand mask before another background."""
        draws = Draws(keys(batch.key, _STREAM))
        rows = (batch.has_hand_mask & batch.has_hand & draws.chance(share)).nonzero().squeeze(1)
        if not len(rows):
            return images
        # Keys of their own: the first draw of these has just decided which rows they are.
        own = Draws(keys(draws.key[rows], 1))
        hand = batch.hand_mask[rows].float() / 255
        photo = images[rows]
        # The hand's own tone, for others' arms and faces, near enough to linear light.
        skin = (photo * hand).sum((2, 3)) / hand.sum((2, 3)).clamp(min=1)
        light = own.uniform(1, 1, 1, low=-0.8, high=0.5).exp().expand(-1, 1, *photo.shape[-2:])
        room = stored(backgrounds(photo.shape[-1], self.bank, skin**2.2, light, own))
        return images.index_copy(0, rows, torch.lerp(room, photo, hand))
