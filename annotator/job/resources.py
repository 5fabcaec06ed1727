"""Plan workers and decoders on a machine or cluster: decoders on CPUs, models on GPUs or CPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from annotator.errors import UserError
from annotator.job.options import ComputeOptions

#: CPUs of a task that decodes or writes a shard.
TASK_CPUS = 0.5

#: Memory of a process that decodes or writes, and of a process with a model, without the model (docs/benchmarks.md).
DECODER_BYTES, PROCESS_BYTES = 1 << 28, 1 << 29

#: Working memory of a model per pixel of a batch: 340 to 440 bytes were measured for two backbones.
_WORKING_BYTES = 512


@dataclass(frozen=True)
class WorkerPlan:
    """Processes per stage, and the resources that each declares to Ray."""

    decoders: int
    decoder_cpus: float
    workers: int = 0
    worker_cpus: float = 0.0
    worker_gpus: float = 0.0
    worker_memory: int = 0  # bytes
    threads: int = 1  # per worker


def memory_of_model(crop_px: int, batch_size: int, weight_bytes: int) -> int:
    """Return the bytes of a process with a model on a CPU: weights as loaded and as used, and working memory."""
    return PROCESS_BYTES + 3 * weight_bytes + _WORKING_BYTES * batch_size * crop_px**2


def plan_workers(compute: ComputeOptions, model_bytes: int = 1 << 30) -> WorkerPlan:
    """Plan workers on the Ray session of this process; see `plan_workers_on`."""
    import ray

    return plan_workers_on([node["Resources"] for node in ray.nodes() if node["Alive"]], compute, model_bytes)


def plan_workers_on(
    nodes: Sequence[Mapping[str, float]], compute: ComputeOptions, model_bytes: int = 1 << 30
) -> WorkerPlan:
    """Plan workers on machines, each given by its `CPU`, `GPU` and `memory`.

    `model_bytes` is the memory of a model's process without GPUs.

    Raises:
        UserError: more workers are requested than fit.
    """
    share = compute.gpus_per_worker if any(node.get("GPU") for node in nodes) else 0.0
    models_per_machine = (
        _models_on_gpus(nodes, share) if share else _models_on_cpus(nodes, compute, model_bytes)
    )
    workers = compute.workers or sum(count for _, count in models_per_machine)
    if workers > (most := sum(count for _, count in models_per_machine)):
        raise UserError(
            f"{workers} workers requested, but {most} fit on the GPUs: give --workers {most}, or a fraction such as "
            "--gpus-per-worker 0.5"
        )
    threads = worker_cpus = 0.0
    for cpus, count in models_per_machine:  # a plan for the smallest machine fits all
        per_actor = compute.threads or max(1, int(cpus) // count)
        declared = cpus_of_an_actor(cpus, count, per_actor, gpus=share > 0)
        if not threads or declared < worker_cpus:
            threads, worker_cpus = per_actor, declared
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    decoders = int((cpus - workers * worker_cpus) / TASK_CPUS)
    declared_memory = 0
    if not share:
        memories = [node.get("memory", math.inf) for node in nodes if node.get("CPU")]
        free_bytes = sum(memories) - workers * model_bytes
        decoders = int(min(decoders, cpus, max(0.0, free_bytes) / DECODER_BYTES))
        # Ray places a model only where its memory fits; without a declaration, a model that is too large or requested
        # starts all the same.
        declared_memory = model_bytes if max(memories) >= model_bytes and not compute.workers else 0
    return WorkerPlan(
        decoders=compute.decoders or max(1, decoders),
        decoder_cpus=TASK_CPUS,
        workers=workers,
        worker_cpus=worker_cpus,
        worker_gpus=share,
        worker_memory=declared_memory,
        threads=int(threads),
    )


def _models_on_gpus(nodes: Sequence[Mapping[str, float]], share: float) -> list[tuple[float, int]]:
    """Return (CPUs, models that fit on the GPUs) per machine with a GPU."""
    if share > 1 and share != int(share):
        raise UserError(f"{share} GPUs per worker: give a whole number, or a fraction of one GPU")
    models_per_machine = [
        (node.get("CPU", 1.0), math.floor(node["GPU"] / share + 1e-6)) for node in nodes if node.get("GPU")
    ]
    models_per_machine = [(cpus, count) for cpus, count in models_per_machine if count]
    if not models_per_machine:
        raise UserError(f"no machine has {share:.0f} GPUs: lower --gpus-per-worker")
    return models_per_machine


def _models_on_cpus(
    nodes: Sequence[Mapping[str, float]], compute: ComputeOptions, model_bytes: int
) -> list[tuple[float, int]]:
    """Return (CPUs, number of models) per machine, the largest first.

    By default one model per core, as far as memory allows. The threads of one model run in step, layer by layer.
    All wait for the thread whose core a decoder uses: a third slower on two cores (docs/benchmarks.md).
    """
    machines = sorted(
        ((node["CPU"], node.get("memory", math.inf)) for node in nodes if node.get("CPU")), reverse=True
    )
    if not machines:
        raise UserError("no machine of the cluster has a CPU: start machines with CPUs")
    if compute.workers:
        count = math.ceil(compute.workers / len(machines))
        return [(cpus, count) for cpus, _ in machines[: compute.workers]]
    models_per_machine = [
        (cpus, int(min(cpus // (compute.threads or 1), memory // model_bytes))) for cpus, memory in machines
    ]
    # At least one model, even with too little memory or too few CPUs.
    return [(cpus, count) for cpus, count in models_per_machine if count] or [(machines[0][0], 1)]


def plan_decoders(compute: ComputeOptions) -> WorkerPlan:
    """Plan a job without a predict stage: one core per decoder.

    Raises:
        UserError: more workers are requested than there are cores.
    """
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 1))
    workers = compute.workers or max(1, cpus)
    if workers > max(1, cpus):
        raise UserError(
            f"{workers} workers need one CPU each, but Ray has {cpus}: give --workers {max(1, cpus)}"
        )
    return WorkerPlan(decoders=workers, decoder_cpus=1.0)


def cpus_of_an_actor(cpus: float, workers: int, threads: int, gpus: bool) -> float:
    """Return the CPUs that a model actor declares to Ray: half of its threads, or one on a GPU.

    Ray only counts CPUs; the system shares cores among busy processes. The declared CPUs leave half a machine to
    decoders and writers, since photos may take longer to decode than to label. Besides GPU models they leave one core,
    or half of a single core. Without free CPUs decoders would wait forever.

    Raises:
        UserError: too many workers for the cores.
    """
    spare = min(2 * TASK_CPUS, cpus / 2) if gpus else cpus / 2
    wanted = 1.0 if gpus else threads / 2
    declared = min(wanted, math.floor((cpus - spare) / workers * 100) / 100)
    if declared < 0.01:
        raise UserError(
            f"{workers} workers are too many for {cpus:.0f} cores: give --workers {max(1, int(cpus))}"
        )
    return declared
