"""Replace the background of real photos that have a hand mask by synthetic rooms."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.batch import Batch
from trainer.keyed_random import Draws, keys
from trainer.synth.background import backgrounds
from trainer.synth.colour import stored
from trainer.synth.patterns import patterns

#: Number of this random stream, beside the example's key.
_STREAM = 2


class Backdrops:
    """Rooms for photos, each determined by its example's key."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.bank = patterns(seed, device)

    def behind(self, images: Tensor, batch: Batch, share: float) -> Tensor:
        """Return images (B, 3, S, S) in 0..1; a share of those with a hand mask get a new background."""
        draws = Draws(keys(batch.key, _STREAM))
        rows = (batch.has_hand_mask & batch.has_hand & draws.chance(share)).nonzero().squeeze(1)
        if not len(rows):
            return images
        # Separate keys, because the first draw of the others has chosen the rows.
        own = Draws(keys(draws.key[rows], 1))
        hand = batch.hand_mask[rows].float() / 255
        photo = images[rows]
        # The hand's skin tone, for arms and faces in the background, in approximately linear light.
        skin = (photo * hand).sum((2, 3)) / hand.sum((2, 3)).clamp(min=1)
        light = own.uniform(1, 1, 1, low=-0.8, high=0.5).exp().expand(-1, 1, *photo.shape[-2:])
        room = stored(backgrounds(photo.shape[-1], self.bank, skin**2.2, light, own))
        return images.index_copy(0, rows, torch.lerp(room, photo, hand))
