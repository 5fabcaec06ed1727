"""Code of a job's processes, on any machine: tasks that decode or join, and actors that predict.

The stages themselves are in `annotator.job.stages`; its `write_labels` is a task as it is.
"""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from annotator.job.shard import Shard
from annotator.job.stages.predict import ModelBrokenError
from annotator.labels.schema import without_hand
from annotator.sources.entry import Entry
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
    """Return a shard that crashes workers, with its hands recorded as crashed."""
    for row in shard.hand_rows:
        shard.rows[row] |= without_hand("crashed", "every model that tried to label this shard crashed")
    return Shard(shard.rows)


def give_up_hand(shard: Shard, number: int) -> Shard:
    """Return the row of one hand that crashes workers, recorded as crashed."""
    row = shard.rows[shard.hand_rows[number]]
    return Shard([row | without_hand("crashed", "every model that tried to label this hand crashed")])


class WorkerActor:
    """One model, which labels one shard at a time."""

    def start(self, make: Callable[[], Callable[[Shard], Shard]]) -> None:
        """Load the model. Not in `__init__`, whose errors Ray hides behind the actor's death."""
        self._do = make()

    def predict(self, shard: Shard) -> tuple[TaskStats, Shard]:
        """Label the hands of a shard."""
        began = time.time()
        try:
            return TaskStats(began, {}), self._do(shard)
        except ModelBrokenError:
            os._exit(1)  # a new process may work again

    def predict_hand(self, shard: Shard, number: int) -> tuple[TaskStats, Shard]:
        """Label one hand of a shard without the others; return a shard with its row alone."""
        crops = None if shard.crops is None else shard.crops[number : number + 1]
        stats, part = self.predict(Shard([shard.rows[shard.hand_rows[number]]], [0], crops))
        if part.rows[0].get("reason") == "internal_error":
            os._exit(1)  # the error may have broken the model for later hands
        return stats, part
