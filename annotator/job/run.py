"""A job over photos: a source into a label folder, whatever its stations do.

    lease -> settings -> manifest: shards of earlier runs, then new ones as the source is listed -> dispatch -> tally

`annotate` and `detect` are such jobs. The same command again does what is missing and nothing else, however the last
run ended.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic

from annotator.errors import UserError
from annotator.job.dispatcher import Crew, Dispatcher, Stations
from annotator.job.lease import Lease, leased
from annotator.job.manifest import DoneShards, Manifest, PlannedShard, shard_file_name
from annotator.job.record import (
    RunRecord,
    Settings,
    check_settings,
    read_run_record,
    write_run_record,
)
from annotator.job.resources import ComputeOptions
from annotator.job.tally import ShardReport, Tally
from annotator.labels.conditions import Condition
from annotator.labels.folder import label_columns, read_columns
from annotator.runtime.ray_session import check_seen_by_all, connected
from annotator.sources import Source
from annotator.storage.files import check_writable, is_local, join, local_path, remove_folder
from annotator.storage.remote import take_retries


@dataclass(frozen=True)
class Progress:
    """Told before the first shard and after each."""

    photos: int  # with a row so far, earlier runs included
    total: int  # listed so far
    listed: bool  # whether that is all
    outcomes: dict[str, int]  # of all of them
    rate: float  # photos per second of this run, since its first prediction began
    shard_began: float  # when the prediction of the shard just committed began, time.time()
    retries: int  # what stores and processes had to be asked again, this run


@dataclass(frozen=True)
class Job(Generic[Settings]):
    """What is to be done."""

    labels: str
    source: Source
    settings: Settings
    stations: Callable[[Crew], Stations]  # of the crew that there is
    crew: Callable[[ComputeOptions], Crew]
    maker: dict[str, str]  # who makes the rows, by the setting's name
    begin: Callable[[], None] = lambda: None  # writes what lies beside the rows of a new folder
    may_differ: tuple[str, ...] = ()  # settings that may, where rows are done again


def label_folder(labels: str) -> str:
    """A label folder as workers elsewhere find it."""
    return str(local_path(labels).absolute()) if is_local(labels) else labels.rstrip("/")


def run_job(
    job: Job[Settings],
    compute: ComputeOptions,
    relabel: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunRecord[Settings]:
    """Do what is missing.

    Args:
        job: what. compute: by how many.
        relabel: a condition on columns of labels: the photos of rows that meet it are done again, and no others.
        on_progress: called before the first shard and after each.

    Raises:
        UserError: another run is at it, the folder was made with other settings, a place that can't be read or
            written, and whatever goes wrong every time.
    """
    labels = job.labels
    record_of(job, relabel)  # a mistake is told without waiting for the lease of a run that was killed
    check_writable(labels)
    with leased(labels) as lease:
        record = record_of(job, relabel)
        if record is None:
            job.begin()
            record = RunRecord(job.settings)
            write_run_record(labels, record)
        before = copy.deepcopy(record)
        _Run(job, record, lease, on_progress).go(compute, relabel)
        if record != before:
            write_run_record(labels, record)
        remove_folder(join(labels, "_tmp"))
    return record


def record_of(job: Job[Settings], relabel: str | None = None) -> RunRecord[Settings] | None:
    """The record of a job's label folder, if it has one.

    Raises:
        UserError: the folder holds something else, or was made with other settings.
    """
    record = read_run_record(job.labels, type(job.settings))
    if record is None and relabel:
        raise UserError(f"'{job.labels}' holds no labels to do again")
    if record is not None:
        check_settings(job.labels, record.settings, job.settings, job.may_differ if relabel else ())
    return record


@dataclass
class _Run(Generic[Settings]):
    """One run of a job."""

    job: Job[Settings]
    record: RunRecord[Settings]
    lease: Lease
    on_progress: Callable[[Progress], None] | None
    retries: Counter[str] = field(default_factory=Counter)
    replaced: dict[int, ShardReport] = field(default_factory=dict)  # what shards under way had
    listed: bool = False
    worked: int = 0  # photos whose rows this run wrote
    again: int = 0  # photos to be done again, so far

    def go(self, compute: ComputeOptions, relabel: str | None) -> None:
        labels = self.job.labels
        done = DoneShards(labels)
        self.manifest = Manifest(labels, self.lease.confirm)
        self.tally = Tally(labels, done, anew=relabel is not None)
        self.before = self.tally.outcomes.total()
        self.began = self.shard_began = math.inf
        self._tell()
        shards = self._planned(done, compute.shard_size) if relabel is None else self._again(relabel)
        first = next(shards, None)
        if first is not None:
            with connected(compute.address):
                self._work(chain([first], shards), compute)
        self.tally.write()
        self.retries.update(take_retries())
        self._close(relabel)

    def _work(self, shards: Iterator[PlannedShard], compute: ComputeOptions) -> None:
        labels, source = self.job.labels, self.job.source
        check_seen_by_all([source.root] if source.root else [], labels, self.lease.run)
        crew = self.job.crew(compute)
        work = Dispatcher(labels, shards, self.job.stations(crew), crew, self.lease.check)
        with closing(work.reports()) as reports:
            for report in reports:
                self._took(report)

    def _planned(self, done: DoneShards, shard_size: int) -> Iterator[PlannedShard]:
        yield from self.manifest.pending(done)
        yield from self.manifest.new(self.job.source, shard_size)
        self.listed = True

    def _again(self, relabel: str) -> Iterator[PlannedShard]:
        """Shards with a row that meets the condition, of those the entries that have one."""
        if sum(count for _, count in self.manifest.counts()) > self.before:
            raise UserError(
                f"'{self.job.labels}' is not finished: run the same command without --relabel to its end first"
            )
        self.record.relabelled.append({"where": relabel, **self.job.maker})
        with self.job.source.renewing() as renewed:
            for shard in self.manifest.all():
                ids = _meeting(self.job.labels, shard.number, relabel)
                entries = [renewed(entry) for entry in shard.entries if entry.id in ids]
                if entries:
                    self.replaced[shard.number] = self.tally.of_labels(shard.number)
                    self.again += sum(not entry.first_hand for entry in entries)
                    yield PlannedShard(shard.number, entries, [entry.id for entry in shard.entries])
        self.listed = True

    def _took(self, report: ShardReport) -> None:
        replaced = self.replaced.pop(report.shard, None)
        self.worked += report.written
        self.tally.add(report, replaced)
        self.retries.update(report.retries)
        self.shard_began = report.began
        self.began = min(self.began, report.began)
        self._tell()

    def _tell(self) -> None:
        if self.on_progress:
            photos = self.worked if self.again else self.tally.outcomes.total()
            rate = self.worked / max(time.time() - self.began, 1e-3)
            self.on_progress(
                Progress(
                    photos,
                    self.again or max(self.manifest.photo_count, photos),
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
                    f"'{self.job.labels}' has rows of {record.photos} photos where {self.manifest.photo_count} were "
                    "planned: delete '_outcomes' in it and run the same command again"
                )
        if self.began < math.inf:
            record.seconds = round(record.seconds + time.time() - self.began, 1)
        for cause, count in self.retries.items():
            record.retries[cause] = record.retries.get(cause, 0) + count


def _meeting(labels: str, number: int, relabel: str) -> set[str]:
    """Ids of the photos in a label file with a row that meets a condition."""
    name = shard_file_name(number)
    condition = Condition(relabel, label_columns(labels, name))
    table = read_columns(labels, name, list(dict.fromkeys(["image_id", *condition.columns])))
    return set(condition.meeting(table)["image_id"].to_pylist())
