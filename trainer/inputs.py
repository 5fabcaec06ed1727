"""Turn the examples of a step into the network's input: augmented crops on the device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.augment import prepare
from trainer.batch import Batch
from trainer.config import TrainConfig
from trainer.data.steps import DeferredExamples, Steps

if TYPE_CHECKING:
    from trainer.synth.backdrops import Backdrops


def backdrops_of(config: TrainConfig, device: torch.device) -> Backdrops | None:
    """Return synthetic rooms to put behind hands, if the settings have any."""
    if not config.augment.backdrop:
        return None
    from trainer.synth.backdrops import Backdrops

    return Backdrops(config.seed, device)


def network_inputs(
    parts: list[Batch | DeferredExamples],
    data: Steps,
    config: TrainConfig,
    device: torch.device,
    backdrops: Backdrops | None = None,
) -> tuple[Tensor, Batch]:
    """Return the examples of all sources as augmented crops of one size."""
    crop_px = config.network.crop_px
    ready = []
    for part in data.filled(parts, device):
        margin = part.image.shape[-1] / crop_px
        ready.append(prepare(part, crop_px, margin, config.augment, backdrops))
    images = torch.cat([images for images, _ in ready]).contiguous(memory_format=torch.channels_last)
    # The original images differ in size between sources, and are not needed any more.
    return images, Batch.join([replace(batch, image=batch.image[..., :0, :0]) for _, batch in ready])
