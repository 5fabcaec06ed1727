"""The stages of a shard, a file each: decode, predict, write. Plain functions on one shard, without Ray.

    entries --decode_shard--> Shard with crops --predict_shard--> Shard with hands --write_labels--> a label file

Every entry becomes a row, whether it succeeds or fails (`rows.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from annotator.job.shard import Shard
from annotator.job.stages.decode import decode_shard
from annotator.job.stages.predict import predict_shard
from annotator.job.stages.rows import crashed_shard, first_row
from annotator.job.stages.write import shard_table, write_labels
from annotator.sources.entry import Entry

__all__ = ["Stages", "decode_shard", "first_row", "predict_shard", "shard_table", "write_labels"]


@dataclass(frozen=True)
class Stages:
    """Functions of a run's stages. They are pickled and run in other processes."""

    decode: Callable[[Sequence[Entry]], Shard]
    #: Called once in each actor; None for a job without a predict stage.
    model: Callable[[], Callable[[Shard], Shard]] | None
    schema: pa.Schema
    #: Changes a shard in place once all its hands are labelled.
    finish_shard: Callable[[Shard], None] | None = None
    #: Rows of entries that crashed every decoder.
    crashed: Callable[[Sequence[Entry]], Shard] = crashed_shard
