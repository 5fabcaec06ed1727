"""Load the steps of a training in other processes and prepare them as augmented crops on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from annotator.runtime.malloc import keep_freed_memory
from trainer.augment import prepare
from trainer.batch import Batch
from trainer.config import TrainConfig
from trainer.data.stream import Order, Steps

if TYPE_CHECKING:
    from trainer.synth.backdrops import Backdrops


def loader(data: Steps, start: int) -> Iterator[list[Batch | Order]]:
    """Yield this worker's part of each step from `start` on; other processes read ahead."""
    loaders = data.config.loaders
    return iter(
        DataLoader(
            data,
            batch_size=None,
            sampler=range(start, data.config.steps),
            num_workers=loaders,
            prefetch_factor=4 if loaders else None,
            # A fork would copy locks held by threads of this process.
            multiprocessing_context="spawn" if loaders else None,
            worker_init_fn=_start_loader if loaders else None,
            pin_memory=torch.cuda.is_available(),
        )
    )


def _start_loader(_: int) -> None:
    keep_freed_memory()


def backdrops_of(config: TrainConfig, device: torch.device) -> Backdrops | None:
    """Return drawn rooms to put behind hands, if the settings have any."""
    if not config.augment.backdrop:
        return None
    from trainer.synth.backdrops import Backdrops

    return Backdrops(config.seed, device)


def prepared(
    parts: list[Batch | Order],
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
