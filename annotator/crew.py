"""How work is spread over a machine or cluster: decoders on CPUs, models on GPUs or CPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from annotator.dispatch import Crew
from annotator.errors import UserError

#: Opening a shard and writing one are tasks of half a core each.
TASK_CPUS = 0.5


@dataclass(frozen=True)
class ComputeOptions:
    """How the work is spread; labels differ by float rounding at most."""

    workers: int | None = (
        None  # model actors; one per GPU (or as many as fit its parts), else one per machine
    )
    threads: int | None = None  # of each model actor; a machine's cores shared out among its actors
    batch_size: int | None = None  # 32 on CPUs; on GPUs found by trying
    shard_size: int = 256  # photos a label file
    decoders: int | None = None  # shards opened at once; as many as the CPUs that models leave
    gpus_per_worker: float = 1.0
    address: str | None = None  # none: a Ray of this machine's own; auto: the cluster it is part of


def crew_of(compute: ComputeOptions) -> tuple[Crew, int]:
    """Who works where on the Ray that this process is connected to, and the threads of each model.

    Raises:
        UserError: more workers than there is room for.
    """
    import ray

    nodes: list[dict[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if gpus:
        share = compute.gpus_per_worker
        room = sum(math.floor(node.get("GPU", 0.0) / share + 1e-6) for node in nodes)
        workers = compute.workers or room
        if workers > room:
            raise UserError(
                f"{workers} workers asked for, but there are {gpus:.0f} GPUs with room for {room}: "
                f"give --workers {room}, or --gpus-per-worker a part such as 0.5"
            )
        threads = compute.threads or max(1, int(cpus) // workers)
        per_node = math.ceil(workers / len(nodes))
        worker_cpus = cpus_of_an_actor(
            max(node.get("CPU", 1.0) for node in nodes), per_node, threads, gpus=True
        )
    else:
        share = 0.0
        with_cpus = sorted((node["CPU"] for node in nodes if node.get("CPU")), reverse=True)
        if not with_cpus:
            raise UserError("no machine of the cluster has a CPU to work with: start some that do")
        workers = compute.workers or len(with_cpus)
        per_node = math.ceil(workers / len(with_cpus))
        of_node = with_cpus[min(workers, len(with_cpus)) - 1]
        threads = compute.threads or max(1, int(of_node) // per_node)
        worker_cpus = cpus_of_an_actor(of_node, per_node, threads, gpus=False)
    left = cpus - workers * worker_cpus
    decoders = compute.decoders or max(1, int(left / TASK_CPUS))
    return Crew(decoders, TASK_CPUS, workers, worker_cpus, share), threads


def openers_only(compute: ComputeOptions) -> Crew:
    """Where opening is all there is to do: a core for each opener.

    Raises:
        UserError: there are not as many cores.
    """
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 1))
    workers = compute.workers or cpus
    return Crew(decoders=workers, decoder_cpus=min(1.0, math.floor(cpus / workers * 100) / 100))


def cpus_of_an_actor(cpus: float, workers: int, threads: int, gpus: bool) -> float:
    """How many CPUs a model actor declares to Ray: one less than its threads, one on a GPU.

    All actors of a machine leave a core, or half of a single one, for openers and writers, who would otherwise wait
    for ever.

    Raises:
        UserError: there are too many workers for that.
    """
    spare = min(2 * TASK_CPUS, cpus / 2)
    wanted = 1.0 if gpus else max(1.0, threads - 1.0)
    declared = min(wanted, math.floor((cpus - spare) / workers * 100) / 100)
    if declared < 0.01:
        raise UserError(
            f"{workers} workers are too many for {cpus:.0f} cores: give --workers {max(1, int(cpus) - 1)}"
        )
    return declared
