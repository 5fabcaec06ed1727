"""The training loop on many workers: Ray Train starts them, joins them and starts them again when one dies."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any

from annotator.cluster import connected
from annotator.errors import UserError
from trainer.config import TrainConfig
from trainer.loop import Progress, train

#: How often a run is taken up again after workers died; each time it goes on from its newest checkpoint.
MAX_FAILURES = 20

#: What a program gets wrong every time; anything else may be a neighbour that died, and is tried again.
MISTAKES = (TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError)


def train_on_ray(
    config: TrainConfig,
    out: str,
    workers: int,
    address: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """`train` in `workers` processes, a GPU each where Ray has any; OUT must be the same place for all of them.

    Raises:
        UserError: as `train` does; or more workers than there are CPUs or GPUs for.
    """
    with connected(address):
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.util.queue import Queue

        there = ray.cluster_resources()
        gpus = there.get("GPU", 0) > 0
        kind = "GPU" if gpus else "CPU"
        count = there.get(kind, 0)
        if workers > count:
            raise UserError(
                f"{workers} workers want a {kind} each, but Ray has {count:.0f}: give --workers {count:.0f}"
            )
        threads = 1 if gpus else max(int(there["CPU"]) // workers, 1)
        told = Queue(actor_options={"num_cpus": 0})
        mistakes: list[Exception] = []
        listener = Thread(target=_listen, args=(told, on_progress, mistakes), daemon=True)
        listener.start()
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"config": config, "out": out, "told": told, "threads": threads},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": threads}
            ),
            run_config=RunConfig(failure_config=FailureConfig(max_failures=MAX_FAILURES)),
        )
        try:
            trainer.fit()
        finally:
            told.put(None)
            listener.join()
            told.shutdown()
        if mistakes:
            raise mistakes[0]


def _worker(settings: dict[str, Any]) -> None:
    """What each worker runs; Ray has set up the process group already."""
    import torch
    from ray.train.torch import get_device

    torch.set_num_threads(settings["threads"])
    told = settings["told"]
    try:
        train(settings["config"], settings["out"], str(get_device()), told.put)
    except (UserError, *MISTAKES) as error:  # to try again would not help
        told.put(error)


def _listen(told: Any, on_progress: Callable[[Progress], None], mistakes: list[Exception]) -> None:
    while (said := told.get()) is not None:
        if isinstance(said, Exception):
            mistakes.append(said)
        else:
            on_progress(said)
