"""Run a job: from a source to a label set, for any stages.

    lease -> settings -> manifest: shards of earlier runs, then new ones as the source is listed -> dispatch -> tally

`annotate`, `detect`, `fit` and `track` are jobs. The same command resumes an unfinished run, however it ended.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Generic

from annotator.errors import UserError
from annotator.job.dispatcher import Dispatcher
from annotator.job.lease import Lease, leased, missing_on_this_machine
from annotator.job.manifest import DoneShards, Manifest, PlannedShard, shard_file_name
from annotator.job.options import ComputeOptions
from annotator.job.record import (
    RunRecord,
    Settings,
    check_settings,
    read_run_record,
    write_run_record,
)
from annotator.job.resources import WorkerPlan
from annotator.job.stages import Stages
from annotator.job.tally import ShardReport, Tally
from annotator.labels.conditions import Condition
from annotator.labels.folder import OUTCOMES_FOLDER, column_names, read_columns
from annotator.runtime.ray_session import check_shared, connected
from annotator.sources import Source
from annotator.storage.files import check_writable, join, remove_folder
from annotator.storage.remote import take_retries


@dataclass(frozen=True)
class Progress:
    """Progress of a run, reported before the first shard and after each."""

    photos: int  # with a row so far, including earlier runs
    total: int  # listed so far
    listed: bool  # whether listing is complete
    outcomes: dict[str, int]  # of all photos with a row
    rate: float  # photos/s of this run since its first prediction
    shard_began: float  # start of the last committed shard's prediction, time.time()
    retries: int  # of stores and processes, this run


@dataclass(frozen=True)
class Job(Generic[Settings]):
    """A source, a label set and the stages between them."""

    labels: str
    source: Source
    settings: Settings
    stages: Callable[[WorkerPlan], Stages]
    plan: Callable[[ComputeOptions], WorkerPlan]
    producer: dict[str, str]  # id of the checkpoint or detector, under its setting's name
    begin: Callable[[], None] = lambda: None  # writes the other files of a new folder, such as faces
    may_differ: tuple[str, ...] = ()  # settings that may change with --relabel


def run_job(
    job: Job[Settings],
    compute: ComputeOptions,
    relabel: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunRecord[Settings]:
    """Run a job, or resume it.

    Args:
        job: source, label set and stages. compute: how the work is spread.
        relabel: a condition on label columns; photos of matching rows are labelled again, and no others.
        on_progress: called before the first shard and after each.

    Raises:
        UserError: another run writes to the folder, the folder has other settings, a file or store cannot be read
            or written, or a step keeps failing.
    """
    labels = job.labels
    checked_record(job, relabel)  # report mistakes before waiting for the lease of a killed run
    check_writable(labels)
    with leased(labels) as lease:
        record = checked_record(job, relabel)
        if record is None:
            job.begin()
            record = RunRecord(job.settings)
            write_run_record(labels, record)
        before = copy.deepcopy(record)
        _Run(job, record, lease, on_progress).execute(compute, relabel)
        if record != before:
            write_run_record(labels, record)
        remove_folder(join(labels, "_tmp"))
    return record


def checked_record(job: Job[Settings], relabel: str | None = None) -> RunRecord[Settings] | None:
    """Return the record of a job's label set, or None for a new folder.

    Raises:
        UserError: the folder holds other files, or has other settings.
    """
    record = read_run_record(job.labels, type(job.settings))
    if record is None and relabel:
        raise UserError(
            f"'{job.labels}' holds no labels, so --relabel has nothing to label again: run without it"
        )
    if record is not None:
        check_settings(job.labels, record.settings, job.settings, job.may_differ if relabel else ())
    return record


@dataclass
class _Run(Generic[Settings]):
    """State of one run of a job."""

    job: Job[Settings]
    record: RunRecord[Settings]
    lease: Lease
    on_progress: Callable[[Progress], None] | None
    retries: Counter[str] = field(default_factory=Counter)
    replaced: dict[int, ShardReport] = field(default_factory=dict)  # earlier outcomes of shards in flight
    listed: bool = False
    worked: int = 0  # photos whose rows this run wrote
    to_relabel: int = 0  # photos to be labelled again, so far

    def execute(self, compute: ComputeOptions, relabel: str | None) -> None:
        labels = self.job.labels
        done = DoneShards(labels)
        self.manifest = Manifest(labels, self.lease.confirm)
        self.tally = Tally(labels, done, discard_record=relabel is not None)
        self.before = self.tally.outcomes.total()
        self.began = self.shard_began = math.inf
        self._report()
        shards = self._planned(done, compute.shard_size) if relabel is None else self._relabelled(relabel)
        first = next(shards, None)
        if first is not None:
            with connected(compute.address):
                self._work(chain([first], shards), compute)
        self.tally.write()
        self.retries.update(take_retries())
        self._close(relabel)

    def _work(self, shards: Iterator[PlannedShard], compute: ComputeOptions) -> None:
        labels, source = self.job.labels, self.job.source
        places = [source.root] if source.root else []
        check_shared(places, partial(missing_on_this_machine, labels=labels, run=self.lease.run))
        plan = self.job.plan(compute)
        work = Dispatcher(labels, shards, self.job.stages(plan), plan, self.lease.check)
        with closing(work.reports()) as reports:
            for report in reports:
                self._commit(report)

    def _planned(self, done: DoneShards, shard_size: int) -> Iterator[PlannedShard]:
        yield from self.manifest.pending(done)
        yield from self.manifest.new(self.job.source, shard_size)
        self.listed = True

    def _relabelled(self, relabel: str) -> Iterator[PlannedShard]:
        """Yield shards with matching rows, each reduced to the entries of those rows."""
        if sum(count for _, count in self.manifest.counts()) > self.before:
            raise UserError(
                f"'{self.job.labels}' is not finished: finish it first, with the same command without --relabel"
            )
        self.record.relabelled.append({"where": relabel, **self.job.producer})
        with self.job.source.renewing() as renewed:
            for shard in self.manifest.all():
                ids = _matching_ids(self.job.labels, shard.number, relabel)
                entries = [renewed(entry) for entry in shard.entries if entry.id in ids]
                if entries:
                    self.replaced[shard.number] = self.tally.of_labels(shard.number)
                    self.to_relabel += sum(not entry.first_hand for entry in entries)
                    yield PlannedShard(shard.number, entries, [entry.id for entry in shard.entries])
        self.listed = True

    def _commit(self, report: ShardReport) -> None:
        replaced = self.replaced.pop(report.shard, None)
        self.worked += report.written
        self.tally.add(report, replaced)
        self.retries.update(report.retries)
        self.shard_began = report.began
        self.began = min(self.began, report.began)
        self._report()

    def _report(self) -> None:
        if self.on_progress:
            photos = self.worked if self.to_relabel else self.tally.outcomes.total()
            rate = self.worked / max(time.time() - self.began, 1e-3)
            self.on_progress(
                Progress(
                    photos,
                    self.to_relabel or max(self.manifest.photo_count, photos),
                    self.listed,
                    dict(self.tally.outcomes),
                    rate,
                    self.shard_began,
                    self.retries.total(),
                )
            )

    def _close(self, relabel: str | None) -> None:
        record, source = self.record, self.job.source
        record.outcomes = dict(sorted(self.tally.outcomes.items()))
        record.failed = self.tally.failed
        if relabel is None:
            record.skipped_files, record.skipped_names = source.skipped_count, source.skipped
            if record.photos != self.manifest.photo_count:
                raise UserError(
                    f"'{self.job.labels}' has rows of {record.photos} photos instead of the planned "
                    f"{self.manifest.photo_count}: delete '{OUTCOMES_FOLDER}' in it and run the same command again"
                )
        if self.began < math.inf:
            record.seconds = round(record.seconds + time.time() - self.began, 1)
        for cause, count in self.retries.items():
            record.retries[cause] = record.retries.get(cause, 0) + count


def _matching_ids(labels: str, number: int, relabel: str) -> set[str]:
    """Return the ids of photos in a label file with a row that meets a condition."""
    name = shard_file_name(number)
    condition = Condition(relabel, column_names(labels, name))
    table = read_columns(labels, name, list(dict.fromkeys(["image_id", *condition.columns])))
    return set(condition.filter(table)["image_id"].to_pylist())
