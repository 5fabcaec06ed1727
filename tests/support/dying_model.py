"""A model without a network whose process ends at crops of one grey, as a fault in native code ends it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from annotator.job.options import ComputeOptions
from annotator.job.record import RunRecord
from annotator.job.resources import plan_workers
from annotator.job.run import Job, run_job
from annotator.job.shard import Shard
from annotator.job.stages import Stages, decode_shard
from annotator.labels.schema import label_schema
from annotator.sources import open_source

DEADLY = 77

COLUMNS = ("image_uri", "image_id", "hand_index", "status", "reason", "error", "joint_std_mm")


class DyingModel:
    """Labels a hand with the grey of its crop."""

    def __call__(self, shard: Shard) -> Shard:
        assert shard.crops is not None
        greys = shard.crops.pixels.reshape(len(shard.crops), -1).mean(1)
        if (greys == DEADLY).any():
            os._exit(139)
        for row in shard.hand_rows:
            shard.rows[row]["status"] = "ok"
        return Shard(shard.rows, shard.hand_rows, hands={"joint_std_mm": greys.astype(np.float32)})


@dataclass(frozen=True)
class GreySettings:
    """Settings of a job that labels greys."""

    source: str


def label_greys(photos: Path, labels: Path, shard_size: int) -> RunRecord[GreySettings]:
    """Run the real job with that model."""
    source = open_source(str(photos))
    schema = pa.schema([field for field in label_schema(1) if field.name in COLUMNS])
    stages = Stages(partial(decode_shard, crop_px=8), DyingModel, schema)
    job = Job(str(labels), source, GreySettings(source.place), lambda _: stages, plan_workers, {})
    return run_job(job, ComputeOptions(workers=1, threads=1, shard_size=shard_size))
