"""The training loop on many workers: Ray Train starts and joins them; when one dies, all start again."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from annotator.errors import UserError
from annotator.runtime.ray_session import connected
from annotator.storage.files import is_local, local_path
from trainer.config import TrainConfig
from trainer.train import Progress, train

#: So many times in a row may workers die before a step is told of; each time they go on from the newest checkpoint.
PATIENCE = 5

#: What goes wrong every time; anything else may be a neighbour that died, and is tried again.
MISTAKES = (
    UserError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    torch.OutOfMemoryError,
)


def train_on_ray(
    config: TrainConfig,
    out: str,
    workers: int | None = None,
    address: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """`train` in `workers` processes, a GPU each where Ray has any; OUT must be the same place for all of them.

    By default as many as there are GPUs, or one.

    Raises:
        UserError: as `train` does; more workers than there are CPUs or GPUs for; or workers that keep dying.
    """
    if is_local(out):
        out = str(local_path(out).absolute())
    with connected(address):
        workers, threads, gpus = _shared_out(workers)
        settings = {"config": config, "out": out, "threads": threads, "folder": str(Path.cwd())}
        reached = -1

        def told(progress: Progress) -> None:
            nonlocal reached
            reached = progress.step
            on_progress(progress)

        deaths, reached_before = 0, -1
        while error := _attempt(settings, workers, gpus, told):
            deaths = deaths + 1 if reached <= reached_before else 1
            reached_before = max(reached, reached_before)
            if deaths == PATIENCE:
                raise UserError(
                    f"workers died {deaths} times without a step in between ({_reason(error)}): if it was for "
                    "want of memory, lower batch_size"
                ) from error


def _shared_out(workers: int | None) -> tuple[int, int, bool]:
    """Workers, CPU threads of each, and whether each has a GPU."""
    import ray

    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    kind, count = ("GPU", gpus) if gpus else ("CPU", int(there.get("CPU", 0)))
    workers = workers or gpus or 1
    if workers > count:
        raise UserError(f"{workers} workers want a {kind} each, but Ray has {count}: give --workers {count}")
    if gpus:
        return workers, 1, True
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    # A worker's threads are of one machine.
    threads = next(t for t in range(max(nodes), 0, -1) if sum(cpus // t for cpus in nodes) >= workers)
    return workers, threads, False


def _attempt(
    settings: dict[str, Any], workers: int, gpus: bool, on_progress: Callable[[Progress], None]
) -> Exception | None:
    """Train until it is done, or until workers die: returns what they died of."""
    import ray
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    told = Queue(actor_options={"num_cpus": 0})
    listener = threading.Thread(target=_listen, args=(told, on_progress), daemon=True)
    listener.start()
    try:
        with _private_train() as folder:
            TorchTrainer(
                _worker,
                train_loop_config={**settings, "told": told},
                scaling_config=ScalingConfig(
                    num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": settings["threads"]}
                ),
                run_config=RunConfig(storage_path=folder),
            ).fit()
        return None
    except SystemExit:  # Ray Train's answer to Ctrl-C
        raise KeyboardInterrupt from None
    except (TrainingFailedError, ray.exceptions.RayActorError) as error:
        for of_worker in getattr(error, "worker_failures", {}).values():
            if isinstance(of_worker, MISTAKES):
                raise of_worker from None
        return error
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            told.put(None)
            listener.join()
            told.shutdown()


@contextlib.contextmanager
def _private_train() -> Iterator[str]:
    """What Ray Train leaves behind or changes in this process is undone; gives a folder for its own notes."""
    # Looked at twice a second: a run ends, and a dead worker is seen, so much sooner.
    changed = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    held = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # failures come as exceptions, once
    main = threading.current_thread() is threading.main_thread()
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with tempfile.TemporaryDirectory(prefix="amvur-train-", ignore_cleanup_errors=True) as folder:
            yield folder
    finally:
        if main:
            signal.signal(signal.SIGINT, on_interrupt)
        for name, value in held.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _reason(error: Exception) -> str:
    """Why one worker died, in a line."""
    cause = next(iter(getattr(error, "worker_failures", {}).values()), error)
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)


def _worker(settings: dict[str, Any]) -> None:
    """What each worker runs; Ray has set up the process group already."""
    from ray.train.torch import get_device

    torch.set_num_threads(settings["threads"])
    with contextlib.suppress(OSError):  # relative paths mean what they mean where the run was started
        os.chdir(settings["folder"])
    train(settings["config"], settings["out"], str(get_device()), settings["told"].put)


def _listen(told: Any, on_progress: Callable[[Progress], None]) -> None:
    import ray

    with contextlib.suppress(ray.exceptions.RayError):
        while (said := told.get()) is not None:
            on_progress(said)
