"""Read the steps of a run ahead, in processes that each read their own part of the files.

The examples of a step are divided among all loaders, by lanes. Loader i of L reads the lanes whose index among this
worker's is i modulo L. So the loaders of a worker together read each row group once and hold one per lane, however many
they are. Parts are put back into the order of the step, so batches do not depend on the number of loaders.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from annotator.runtime.malloc import keep_freed_memory
from trainer.batch import Batch
from trainer.data.steps import DeferredExamples, Steps

#: Steps read ahead.
AHEAD = 4


class _Dealt(Dataset[list[Batch | DeferredExamples | None]]):
    """Part k of a run: the share of loader k % L in step k // L; `DataLoader` deals parts to its processes in turn."""

    def __init__(self, data: Steps, loaders: int) -> None:
        self.data, self.loaders = data, loaders

    def __getitem__(self, number: int) -> list[Batch | DeferredExamples | None]:
        step, loader = divmod(number, self.loaders)
        return self.data.part(step, loader, self.loaders)


def read_steps(data: Steps, start: int) -> Iterator[list[Batch | DeferredExamples]]:
    """Yield this worker's examples of each step from `start` on; `config.loaders` processes read ahead."""
    loaders = data.config.loaders
    steps = range(start, data.config.steps)
    if not loaders:
        yield from (data[step] for step in steps)
        return
    parts = iter(
        DataLoader(
            _Dealt(data, loaders),
            batch_size=None,
            sampler=range(start * loaders, data.config.steps * loaders),
            num_workers=loaders,
            prefetch_factor=AHEAD,
            # A fork would copy locks held by threads of this process.
            multiprocessing_context="spawn",
            worker_init_fn=_start_loader,
            pin_memory=torch.cuda.is_available(),
        )
    )
    for step in steps:
        yield data.joined(step, [next(parts) for _ in range(loaders)])


def _start_loader(_: int) -> None:
    keep_freed_memory()
