"""Options that spread a run over a machine or cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ComputeOptions:
    """Workers, batches and shards of a run. Labels differ by float rounding at most."""

    workers: int | None = None  # model actors; default one per GPU share, else one per core
    threads: int | None = None  # per model actor; default: the machine's cores divided among its actors
    batch_size: int | None = None  # default 32 on CPUs; measured on GPUs
    shard_size: int = 256  # photos per label file
    decoders: int | None = None  # shards decoded at once; default: as many as the remaining CPUs allow
    gpus_per_worker: float = 1.0
    address: str | None = None  # None: a local Ray session; auto: the cluster of this machine
