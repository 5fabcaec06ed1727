"""What runs in the processes of a job, which may be anywhere: tasks that open and write, actors that predict."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa

from annotator.job.manifest import shard_file_name
from annotator.job.stages import ModelBrokenError, Shard, joined_columns, shard_table
from annotator.job.tally import OUTCOME_COLUMNS, ShardReport, report_of
from annotator.labels.folder import replace_rows
from annotator.labels.schema import encode_table, without_hand
from annotator.sources.entry import Entry
from annotator.storage.files import join, write_whole
from annotator.storage.remote import take_retries


class Brief(NamedTuple):
    """What the driver hears of a station; the shard itself goes from station to station."""

    began: float
    retries: dict[str, int]
    hands: int = 0  # that wait for labels


def open_piece(
    opener: Callable[[Sequence[Entry]], Shard], entries: list[Entry], limit_s: float
) -> tuple[Brief, Shard]:
    """Open some entries; a process that takes longer than its limit is ended."""
    began = time.time()
    # A decoder that never comes back holds the interpreter as well: only a thread of C's ends it.
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        faulthandler.dump_traceback_later(limit_s, exit=True, file=nowhere)
        try:
            shard = opener(entries)
        finally:
            faulthandler.cancel_dump_traceback_later()
    return Brief(began, take_retries(), len(shard.hand_rows)), shard


def join_pieces(*parts: Shard) -> Shard:
    """A shard that was opened in pieces."""
    return Shard.join(parts)


def give_up(shard: Shard) -> Shard:
    """A shard that ended one model after the other: its hands stay without labels."""
    for row in shard.hand_rows:
        shard.rows[row] |= without_hand(
            "crashed", "each model that was given this shard ended without a word"
        )
    return Shard(shard.rows)


def give_up_hand(shard: Shard, number: int) -> Shard:
    """One hand of a shard, which ended one model after the other: it stays without labels."""
    row = shard.rows[shard.hand_rows[number]]
    return Shard([row | without_hand("crashed", "each model that was given this hand ended without a word")])


def join_hands(shard: Shard, *parts: Shard) -> Shard:
    """A shard whose hands were labelled one by one: `parts` are of one row each, in the shard's order."""
    for row, part in zip(shard.hand_rows, parts, strict=True):
        shard.rows[row] = part.rows[0]
    good = [row for row, part in zip(shard.hand_rows, parts, strict=True) if part.hands]
    return Shard(shard.rows, good, hands=joined_columns([part.hands for part in parts if part.hands]))


def write_labels(
    labels: str, number: int, among: list[str] | None, shard: Shard, schema: pa.Schema
) -> tuple[ShardReport, dict[str, int]]:
    """Write a shard's label file, which commits it, or put its rows in place of those they do again (`among` all ids).

    Returns its report, and what the store was asked again.
    """
    name = shard_file_name(number)
    table = shard_table(shard, schema)
    if among is not None:
        table = replace_rows(labels, name, table, among)
    write_whole(join(labels, "data", name), encode_table(table), scratch=join(labels, "_tmp"))
    report = report_of(number, table.select(OUTCOME_COLUMNS).to_pylist())
    return replace(report, written=sum(row["hand_index"] <= 0 for row in shard.rows)), take_retries()


class ModelActor:
    """One model; asked one shard after the other."""

    def start(self, make: Callable[[], Callable[[Shard], Shard]]) -> None:
        """Apart from `__init__`, whose errors Ray would hide behind the actor's death."""
        self._do = make()

    def label(self, shard: Shard) -> tuple[Brief, Shard]:
        """The shard with its hands labelled."""
        began = time.time()
        try:
            return Brief(began, {}), self._do(shard)
        except ModelBrokenError:
            os._exit(1)  # in a new process it may be whole again

    def label_hand(self, shard: Shard, number: int) -> tuple[Brief, Shard]:
        """One hand of a shard, labelled without the others; its row is the only one."""
        crops = None if shard.crops is None else shard.crops[number : number + 1]
        brief, part = self.label(Shard([shard.rows[shard.hand_rows[number]]], [0], crops))
        if part.rows[0].get("reason") == "internal_error":
            os._exit(1)  # its error may have broken the model for the hands that come next
        return brief, part
