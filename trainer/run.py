"""Where a training runs: in this process, on Ray Train's workers, or as a job of a cluster."""

from __future__ import annotations

from collections.abc import Callable

import torch

from annotator.errors import UserError
from trainer.config import TrainConfig
from trainer.loop import Progress, train


def run_training(
    config: TrainConfig,
    out: str,
    workers: int | None = None,
    address: str | None = None,
    local: bool = False,
    device: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Train with as many workers as asked for, or one a GPU.

    Raises:
        UserError: settings that contradict each other, and whatever `train` raises.
    """
    if local and (address or (workers or 1) > 1):
        raise UserError("--local is one process: leave out --workers and --address, or --local")
    if device and not local:
        raise UserError("--device is for --local: Ray gives each worker its own")
    gpus = torch.cuda.device_count()
    workers = workers or max(gpus, 1)
    if local or (workers == 1 and not address):
        train(config, out, device, on_progress)
        return
    from trainer.distributed import train_on_ray

    train_on_ray(config, out, workers, address, on_progress)
