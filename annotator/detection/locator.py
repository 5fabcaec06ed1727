"""Locate hands near expected positions with the network alone: 2D joints and presence, without meshes.

Of a checkpoint with two looks, the first is enough. It is a tenth of the labelling, and sees any rotation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from annotator.coordinates import CropFrame, square_around
from annotator.detection.following import ExpectedHand, Floats
from annotator.model.checkpoint import checkpoint_of
from annotator.model.checkpoint_file import CheckpointFile
from annotator.model.network import Network, images_of
from annotator.model.two_looks import TwoLooks
from annotator.photos.crops import BOX_PADDING
from annotator.photos.cut import cut
from annotator.runtime.malloc import keep_freed_memory
from annotator.runtime.per_process import once_per_process

#: Crops per forward pass.
_BATCH = 32


class HandLocator:
    """The network of a checkpoint, or its first look, on one thread of the CPU. One per process."""

    def __init__(self, file: CheckpointFile) -> None:
        keep_freed_memory()
        torch.set_num_threads(1)  # a decoder has one core, and threads would change the last digits
        network = checkpoint_of(file).network
        self._network: Network = network.first if isinstance(network, TwoLooks) else network
        self._network.fold_normalisation()

    @torch.inference_mode()
    def __call__(self, expected: Sequence[ExpectedHand]) -> tuple[Floats, Floats]:
        """Return joints (n, 21, 2), photo pixels, and the presence (n,) of a hand at each of n >= 1 expected hands."""
        parts = [self._batch(expected[k : k + _BATCH]) for k in range(0, len(expected), _BATCH)]
        joints2d_px, presence = (np.concatenate(values) for values in zip(*parts, strict=True))
        return joints2d_px, presence

    def _batch(self, expected: Sequence[ExpectedHand]) -> tuple[Floats, Floats]:
        frames = [square_around(hand.box_xyxy, BOX_PADDING) for hand in expected]
        size_px = self._network.config.crop_px
        pixels = np.stack(
            [
                cut(hand.frame.pixels, frame, size_px, hand.frame.width)
                for hand, frame in zip(expected, frames, strict=True)
            ]
        )
        mirrored = np.array([hand.right_score < 0.5 for hand in expected])
        pixels[mirrored] = pixels[mirrored, :, ::-1]
        images = images_of(pixels)
        features = self._network.extract(images)
        joints2d = features.joints2d
        if joints2d is None:
            joints2d = self._network.hands(images, features, "joints").joints2d
        crops = CropFrame(
            np.stack([frame.centre_px for frame in frames]),
            np.array([frame.half_side_px for frame in frames]),
            mirrored,
        )
        presence = self._network.is_hand(features).double().numpy()
        return crops.photo_from_crop(joints2d.double().numpy()), presence


@once_per_process(lambda file: file.id)
def locator_of_process(file: CheckpointFile) -> HandLocator:
    """Return this process's locator; the first call loads it."""
    return HandLocator(file)
