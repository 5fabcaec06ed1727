"""The training loop on many workers: Ray Train starts and joins them; if one dies, all restart."""

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

from annotator.errors import UserError, first_line
from annotator.runtime.ray_session import connected
from annotator.storage.files import is_local, local_path
from trainer.config import TrainConfig
from trainer.progress import TrainingProgress
from trainer.train import train

#: Maximum consecutive deaths of workers without a reported step; each restart resumes from the newest checkpoint.
MAX_DEATHS = 5

#: Errors that would repeat. Any other error may come from a worker that died, and is retried.
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
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
) -> None:
    """Run `train` in `workers` processes, with a GPU each if Ray has GPUs; all of them must reach OUT.

    Default: one worker per GPU, otherwise one.

    Raises:
        UserError: `train` raises one; there are fewer CPUs or GPUs than workers; or workers keep dying.
    """
    if is_local(out):
        out = str(local_path(out).absolute())
    with connected(address):
        workers, threads, gpus = _shared_out(workers)
        settings = {"config": config, "out": out, "threads": threads, "folder": str(Path.cwd())}
        reached = -1

        def report(progress: TrainingProgress) -> None:
            nonlocal reached
            reached = progress.step
            on_progress(progress)

        deaths, reached_before = 0, -1
        while error := _attempt(settings, workers, gpus, report):
            deaths = deaths + 1 if reached <= reached_before else 1
            reached_before = max(reached, reached_before)
            if deaths == MAX_DEATHS:
                raise UserError(
                    f"workers died {deaths} times without progress ({_reason(error)}): if memory "
                    "ran out, lower batch_size"
                ) from error


def _shared_out(workers: int | None) -> tuple[int, int, bool]:
    """Return the number of workers, CPU threads per worker, and whether each has a GPU."""
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    kind, count = ("GPU", gpus) if gpus else ("CPU", int(resources.get("CPU", 0)))
    workers = workers or gpus or 1
    if workers > count:
        raise UserError(f"{workers} workers need a {kind} each, but Ray has {count}: give --workers {count}")
    if gpus:
        return workers, 1, True
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    # All threads of a worker run on one machine.
    threads = next(t for t in range(max(nodes), 0, -1) if sum(cpus // t for cpus in nodes) >= workers)
    return workers, threads, False


def _attempt(
    settings: dict[str, Any], workers: int, gpus: bool, on_progress: Callable[[TrainingProgress], None]
) -> Exception | None:
    """Train until the end (None), or until workers die, and return their error."""
    import ray
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    reports = Queue(actor_options={"num_cpus": 0})
    listener = threading.Thread(target=_listen, args=(reports, on_progress), daemon=True)
    listener.start()
    try:
        with _private_train() as folder:
            trainer = TorchTrainer(
                _worker,
                train_loop_config={**settings, "reports": reports},
                scaling_config=ScalingConfig(
                    num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": settings["threads"]}
                ),
                run_config=RunConfig(storage_path=folder),
            )
            if not _has_dashboard():
                _leave_out_cleaner(trainer)
            trainer.fit()
        return None
    except SystemExit:  # Ray Train raises this on Ctrl-C
        raise KeyboardInterrupt from None
    except (TrainingFailedError, ray.exceptions.RayActorError) as error:
        for failure in getattr(error, "worker_failures", {}).values():
            if isinstance(failure, MISTAKES):
                raise failure from None
        return error
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            reports.put(None)
            listener.join()
            reports.shutdown()


def _has_dashboard() -> bool:
    import ray

    try:
        from ray._private.worker import get_dashboard_url

        return get_dashboard_url() is not None
    except (ImportError, ray.exceptions.RayError):  # a later Ray, or a remote driver
        return True


def _leave_out_cleaner(trainer: Any) -> None:
    """Leave out the actor that frees the workers' CPUs after a death of Ray Train's controller.

    It queries the dashboard. Without one it can free nothing, and its shutdown waits 12 s for a timeout.
    """
    if default := getattr(trainer, "_create_default_callbacks", None):  # a later Ray may lack it
        trainer._create_default_callbacks = lambda: [
            one for one in default() if type(one).__name__ != "PlacementGroupCleanerCallback"
        ]


@contextlib.contextmanager
def _private_train() -> Iterator[str]:
    """Yield a folder for Ray Train's files; at the end delete it and undo Ray Train's changes to this process."""
    # Polling twice a second notices the end of a run or a dead worker sooner.
    changed = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    previous = {name: os.environ.get(name) for name in changed}
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
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _reason(error: Exception) -> str:
    """Return the first line of one worker's error."""
    cause = next(iter(getattr(error, "worker_failures", {}).values()), error)
    return first_line(cause)


def _worker(settings: dict[str, Any]) -> None:
    """Run `train` in a worker, whose process group Ray has set up."""
    from ray.train.torch import get_device

    torch.set_num_threads(settings["threads"])
    with contextlib.suppress(OSError):  # relative paths refer to the folder where the run was started
        os.chdir(settings["folder"])
    train(settings["config"], settings["out"], str(get_device()), settings["reports"].put)


def _listen(reports: Any, on_progress: Callable[[TrainingProgress], None]) -> None:
    import ray

    with contextlib.suppress(ray.exceptions.RayError):
        while (progress := reports.get()) is not None:
            on_progress(progress)
