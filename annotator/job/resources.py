"""How work is spread over a machine or cluster: decoders on CPUs, models on GPUs or CPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from annotator.errors import UserError
from annotator.job.dispatcher import Crew

#: Opening a shard and writing one are tasks of half a core each.
TASK_CPUS = 0.5

#: Memory of a process that opens or writes, and of one with a model beside the model's own (docs/benchmarks.md).
OPENER_BYTES, PROCESS_BYTES = 1 << 28, 1 << 29

#: What a model works on, for each pixel of a batch: 340 to 440 bytes were measured of two backbones.
_WORKING_BYTES = 512


@dataclass(frozen=True)
class ComputeOptions:
    """How the work is spread; labels differ by float rounding at most."""

    workers: int | None = None  # model actors; as many as the GPUs have room for, else one a core
    threads: int | None = None  # of each model actor; a machine's cores shared out among its actors
    batch_size: int | None = None  # 32 on CPUs; on GPUs found by trying
    shard_size: int = 256  # photos a label file
    decoders: int | None = None  # shards opened at once; as many as the CPUs that models leave
    gpus_per_worker: float = 1.0
    address: str | None = None  # none: a Ray of this machine's own; auto: the cluster it is part of


def memory_of_model(crop_px: int, batch_size: int, weight_bytes: int) -> int:
    """Bytes that a process with a model takes on a CPU: as loaded, as it predicts with, and what it works on."""
    return PROCESS_BYTES + 3 * weight_bytes + _WORKING_BYTES * batch_size * crop_px**2


def crew_of(compute: ComputeOptions, model_bytes: int = 1 << 30) -> Crew:
    """Who works where on the Ray that this process is connected to; see `crew_on`."""
    import ray

    return crew_on([node["Resources"] for node in ray.nodes() if node["Alive"]], compute, model_bytes)


def crew_on(
    nodes: Sequence[Mapping[str, float]], compute: ComputeOptions, model_bytes: int = 1 << 30
) -> Crew:
    """Who works where on some machines, each given by its `CPU`, `GPU` and `memory`.

    `model_bytes`: memory of a model's process, where there are no GPUs.

    Raises:
        UserError: more workers than there is room for.
    """
    share = compute.gpus_per_worker if any(node.get("GPU") for node in nodes) else 0.0
    room = _models_on_gpus(nodes, share) if share else _models_on_cpus(nodes, compute, model_bytes)
    workers = compute.workers or sum(count for _, count in room)
    if workers > sum(count for _, count in room):
        raise UserError(
            f"{workers} workers asked for, but the GPUs have room for {sum(count for _, count in room)}: give as many, "
            "or --gpus-per-worker a part such as 0.5"
        )
    threads = worker_cpus = 0.0
    for cpus, count in room:  # what fits the tightest machine fits all
        of_one = compute.threads or max(1, int(cpus) // count)
        declared = cpus_of_an_actor(cpus, count, of_one, gpus=share > 0)
        if not threads or declared < worker_cpus:
            threads, worker_cpus = of_one, declared
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    decoders = int((cpus - workers * worker_cpus) / TASK_CPUS)
    declared_memory = 0
    if not share:
        memories = [node.get("memory", math.inf) for node in nodes if node.get("CPU")]
        left = sum(memories) - workers * model_bytes
        decoders = int(min(decoders, cpus, max(0.0, left) / OPENER_BYTES))
        # Ray puts no model where its memory is not; one that fits nowhere, or is asked for, is tried all the same.
        declared_memory = model_bytes if max(memories) >= model_bytes and not compute.workers else 0
    return Crew(
        decoders=compute.decoders or max(1, decoders),
        decoder_cpus=TASK_CPUS,
        workers=workers,
        worker_cpus=worker_cpus,
        worker_gpus=share,
        worker_memory=declared_memory,
        threads=int(threads),
    )


def _models_on_gpus(nodes: Sequence[Mapping[str, float]], share: float) -> list[tuple[float, int]]:
    """Of each machine with a GPU its CPUs, and how many models its GPUs hold."""
    if share > 1 and share != int(share):
        raise UserError(f"{share} GPUs a worker: give a whole number of them, or a part of one")
    room = [
        (node.get("CPU", 1.0), math.floor(node["GPU"] / share + 1e-6)) for node in nodes if node.get("GPU")
    ]
    room = [(cpus, count) for cpus, count in room if count]
    if not room:
        raise UserError(f"no machine has the {share:.0f} GPUs that a worker is to have")
    return room


def _models_on_cpus(
    nodes: Sequence[Mapping[str, float]], compute: ComputeOptions, model_bytes: int
) -> list[tuple[float, int]]:
    """Of each machine, the largest first, its CPUs, and how many models it gets.

    One a core, if there is memory for so many: the threads of one model go in step, layer by layer, and all wait for
    the one whose core an opener has (a third slower on two cores; docs/benchmarks.md).
    """
    machines = sorted(
        ((node["CPU"], node.get("memory", math.inf)) for node in nodes if node.get("CPU")), reverse=True
    )
    if not machines:
        raise UserError("no machine of the cluster has a CPU to work with: start some that do")
    if compute.workers:
        count = math.ceil(compute.workers / len(machines))
        return [(cpus, count) for cpus, _ in machines[: compute.workers]]
    room = [
        (cpus, int(min(cpus // (compute.threads or 1), memory // model_bytes))) for cpus, memory in machines
    ]
    # With too little of either, one all the same.
    return [(cpus, count) for cpus, count in room if count] or [(machines[0][0], 1)]


def openers_only(compute: ComputeOptions) -> Crew:
    """Where opening is all there is to do: a core for each opener.

    Raises:
        UserError: there are not as many cores.
    """
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 1))
    workers = compute.workers or max(1, cpus)
    if workers > max(1, cpus):
        raise UserError(
            f"{workers} workers want a CPU each, but Ray has {cpus}: give --workers {max(1, cpus)}"
        )
    return Crew(decoders=workers, decoder_cpus=1.0)


def cpus_of_an_actor(cpus: float, workers: int, threads: int, gpus: bool) -> float:
    """How many CPUs a model actor declares to Ray: half of its threads, one on a GPU.

    Ray only counts; the system shares the cores out among whoever has work. What is declared leaves room for as many
    openers and writers as there are cores, since photos may take longer to open than to label: half a machine, or
    beside GPUs a core, or half of a single one. With no room they would wait for ever.

    Raises:
        UserError: there are too many workers for that.
    """
    spare = min(2 * TASK_CPUS, cpus / 2) if gpus else cpus / 2
    wanted = 1.0 if gpus else threads / 2
    declared = min(wanted, math.floor((cpus - spare) / workers * 100) / 100)
    if declared < 0.01:
        raise UserError(
            f"{workers} workers are too many for {cpus:.0f} cores: give --workers {max(1, int(cpus))}"
        )
    return declared
