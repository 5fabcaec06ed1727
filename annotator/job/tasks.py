"""Code that runs in the processes of a job, on any machine: tasks that decode and write, actors that predict."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa

from annotator.job.manifest import shard_file_name
from annotator.job.shard import Shard
from annotator.job.stages import ModelBrokenError
from annotator.job.tally import OUTCOME_COLUMNS, ShardReport, report_of
from annotator.labels.folder import opened_label_file, replace_rows
from annotator.labels.schema import encode_table, without_hand
from annotator.sources.entry import Entry
from annotator.storage.files import join, move_atomic, write_atomic
from annotator.storage.remote import take_retries


class TaskStats(NamedTuple):
    """Statistics of a stage for the driver; the shard itself stays in Ray's object store."""

    began: float  # time.time()
    retries: dict[str, int]  # of stores, by cause
    hands: int = 0  # to be labelled


def decode_piece(
    decode: Callable[[Sequence[Entry]], Shard], entries: list[Entry], limit_s: float
) -> tuple[TaskStats, Shard]:
    """Decode some entries; end the process if it takes longer than `limit_s`."""
    began = time.time()
    # A decoder that hangs may hold the interpreter lock: only a C thread can end the process.
    with open(os.devnull, "w") as null:  # noqa: PTH123
        faulthandler.dump_traceback_later(limit_s, exit=True, file=null)
        try:
            shard = decode(entries)
        finally:
            faulthandler.cancel_dump_traceback_later()
    return TaskStats(began, take_retries(), len(shard.hand_rows)), shard


def join_pieces(*parts: Shard) -> Shard:
    """Join a shard that was decoded in pieces."""
    return Shard.join(parts)


def give_up(shard: Shard) -> Shard:
    """Return a shard that crashes models with its hands recorded as crashed."""
    for row in shard.hand_rows:
        shard.rows[row] |= without_hand("crashed", "every model that tried to label this shard crashed")
    return Shard(shard.rows)


def give_up_hand(shard: Shard, number: int) -> Shard:
    """Return the row of one hand that crashes models, recorded as crashed."""
    row = shard.rows[shard.hand_rows[number]]
    return Shard([row | without_hand("crashed", "every model that tried to label this hand crashed")])


def write_labels(
    labels: str, number: int, all_ids: list[str] | None, shard: Shard, table_of: Callable[[Shard], pa.Table]
) -> tuple[ShardReport, dict[str, int]]:
    """Write a shard's label file, which commits it; return its report and the store's retries by cause.

    `all_ids`: None, or the ids of all entries of a file whose rows are replaced in part.
    """
    name = shard_file_name(number)
    if shard.file and all_ids is None:
        with opened_label_file(shard.file) as opened:
            rows = written = opened.read(OUTCOME_COLUMNS, use_threads=False).to_pylist()
        move_atomic(shard.file, join(labels, "data", name))
    else:
        table = table_of(shard)
        written = table.select(OUTCOME_COLUMNS).to_pylist()
        if all_ids is not None:
            table = replace_rows(labels, name, table, all_ids)
        write_atomic(join(labels, "data", name), encode_table(table), scratch=join(labels, "_tmp"))
        rows = table.select(OUTCOME_COLUMNS).to_pylist()
    report = report_of(number, rows)
    return replace(report, written=sum(row["hand_index"] <= 0 for row in written)), take_retries()


class WorkerActor:
    """One model, which labels one shard at a time."""

    def start(self, make: Callable[[], Callable[[Shard], Shard]]) -> None:
        """Load the model. Not in `__init__`, whose errors Ray hides behind the actor's death."""
        self._do = make()

    def label(self, shard: Shard) -> tuple[TaskStats, Shard]:
        """Label the hands of a shard."""
        began = time.time()
        try:
            return TaskStats(began, {}), self._do(shard)
        except ModelBrokenError:
            os._exit(1)  # a new process may work again

    def predict_hand(self, shard: Shard, number: int) -> tuple[TaskStats, Shard]:
        """Label one hand of a shard without the others; return a shard with its row alone."""
        crops = None if shard.crops is None else shard.crops[number : number + 1]
        stats, part = self.label(Shard([shard.rows[shard.hand_rows[number]]], [0], crops))
        if part.rows[0].get("reason") == "internal_error":
            os._exit(1)  # the error may have broken the model for later hands
        return stats, part
