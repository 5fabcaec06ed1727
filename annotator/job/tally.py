"""Outcomes of all photos of a label set, kept in `LABELS/_outcomes/`, so that resuming reads no labels.

A part has one line per shard. Label files decide: a file without a recorded outcome is read, and a recorded outcome
without a file does not count.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from annotator.job.manifest import DoneShards, shard_file_name
from annotator.labels.folder import OUTCOMES_FOLDER, read_columns
from annotator.labels.outcomes import count_outcomes
from annotator.storage.files import join, names_in, read_if_exists, remove_file, write_atomic
from annotator.storage.remote import without_secrets

#: Columns that outcomes are counted from.
OUTCOME_COLUMNS = ["status", "reason", "hand_index", "image_uri", "error"]

#: Maximum number of failed photos that are listed per shard and per run.
FAILED_OF_SHARD, FAILED_OF_RUN = 3, 20

#: Minimum pause between parts, and parts per doubling of a run's length: parts of long runs are larger.
_EVERY_S, _PARTS_PER_DOUBLING = 5.0, 30


@dataclass
class ShardReport:
    """Outcomes of a shard's entries."""

    shard: int
    outcomes: dict[str, int]  # "ok", or "status: reason"
    failed: list[list[str]] = field(default_factory=list)  # the first few failures: uri, error
    retries: dict[str, int] = field(default_factory=dict)  # by cause
    written: int = 0  # entries with new rows
    began: float = 0.0  # start of its prediction, time.time()


def report_of(shard: int, rows: Iterable[dict[str, Any]]) -> ShardReport:
    """Return the report of a shard's rows."""
    rows = list(rows)
    failed = [[without_secrets(row["image_uri"]), row["error"]] for row in rows if row["status"] == "failed"]
    return ShardReport(shard, count_outcomes(rows), failed[:FAILED_OF_SHARD])


class Tally:
    """The sum of all shards' outcomes, recorded on disk or in a store as shards finish."""

    def __init__(self, labels: str, done: DoneShards, discard_record: bool = False) -> None:
        """Count all label files; read the scalar columns of files without a recorded outcome.

        Args:
            labels: the label set. done: its label files.
            discard_record: count all files and record nothing until `write`, because label files are about to be
                replaced.

        Raises:
            UserError: a label file is damaged.
        """
        self._labels, self._folder, self._at_end = labels, join(labels, OUTCOMES_FOLDER), discard_record
        self._began = self._written = time.monotonic()
        counted = bytearray(done.highest())
        if discard_record or not self._count_parts(done, counted):
            for name in names_in(self._folder):
                remove_file(join(self._folder, name))
            counted = bytearray(done.highest())
            self._start(0)
        for number in done:
            if not counted[number]:
                self.add(self.of_labels(number))
        if not discard_record:
            self.write()

    def _start(self, parts: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failed: list[list[str]] = []
        self._waiting: list[str] = []
        self._parts = parts

    def _count_parts(self, done: DoneShards, counted: bytearray) -> bool:
        """Count recorded outcomes; return whether the record is valid.

        It is not valid if a label file is missing: a later file of that shard may have other outcomes.
        """
        names = sorted(name for name in names_in(self._folder) if name.endswith(".jsonl"))
        self._start(int(names[-1][5:-6]) + 1 if names else 0)
        for name in reversed(names):  # the last outcome of a relabelled shard counts
            for report in reversed(self._reports(name)):
                if report.shard not in done:
                    return False
                if not counted[report.shard]:
                    counted[report.shard] = 1
                    self._count(report)
        return True

    def _reports(self, name: str) -> list[ShardReport]:
        lines = (read_if_exists(join(self._folder, name)) or b"").splitlines()
        return [ShardReport(**json.loads(line)) for line in lines]

    def of_labels(self, number: int) -> ShardReport:
        """Return the report of a label file, without retries and times."""
        table = read_columns(self._labels, shard_file_name(number), OUTCOME_COLUMNS)
        return report_of(number, table.to_pylist())

    def add(self, report: ShardReport, instead_of: ShardReport | None = None) -> None:
        """Count a shard that was just written; `instead_of` is the report of the file it replaced."""
        if instead_of is not None:
            self.outcomes.subtract(instead_of.outcomes)
            self.outcomes = +self.outcomes
            self.failed = [pair for pair in self.failed if pair not in instead_of.failed]
        self._count(report)
        line = {"shard": report.shard, "outcomes": report.outcomes, "failed": report.failed}
        self._waiting.append(json.dumps(line))
        now = time.monotonic()
        if not self._at_end and now - self._written > max(
            _EVERY_S, (now - self._began) / _PARTS_PER_DOUBLING
        ):
            self.write()

    def write(self) -> None:
        """Write the outcomes added since the last part."""
        if self._waiting:
            data = "\n".join(self._waiting).encode() + b"\n"
            write_atomic(join(self._folder, f"part-{self._parts:06d}.jsonl"), data)
            self._parts += 1
            self._waiting.clear()
        self._written = time.monotonic()

    def _count(self, report: ShardReport) -> None:
        self.outcomes.update(report.outcomes)
        self.failed += report.failed[: FAILED_OF_RUN - len(self.failed)]
