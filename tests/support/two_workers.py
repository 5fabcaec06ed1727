"""A training on two workers without Ray: two processes, joined by gloo, which lets both use one GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from trainer.config import TrainConfig
from trainer.train import train


def train_on_two(
    config: TrainConfig, out: Path, device: str = "cpu", prepare: Callable[[int], None] | None = None
) -> None:
    """Train into OUT; `prepare` gets the number of each new process first."""
    meeting = str(out.with_name(f"{out.name}-meeting"))
    # Other tests may have started threads, whose locks a fork would copy.
    torch.multiprocessing.start_processes(
        _train_as_one, (config, str(out), meeting, device, prepare), nprocs=2, start_method="spawn"
    )


def _train_as_one(
    rank: int,
    config: TrainConfig,
    out: str,
    meeting: str,
    device: str,
    prepare: Callable[[int], None] | None,
) -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    if prepare is not None:
        prepare(rank)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    train(config, out, device)
    dist.destroy_process_group()
