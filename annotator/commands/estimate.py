"""Estimate photos, time and size of a run of `annotate`, without writing anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from annotator.commands.annotate import LabelOptions, annotate_job
from annotator.job.manifest import DoneShards, Manifest
from annotator.job.run import checked_record
from annotator.runtime.precision import check_precision
from annotator.runtime.progress import time_left
from annotator.storage.remote import without_secrets

#: Throughput of a job over that of one model times the number of cores, including the second pass for possible left
#: hands (docs/benchmarks.md).
JOB_EFFICIENCY = 0.6

#: Bytes of a label per hand, and per vertex by columns (docs/benchmarks.md).
BYTES_PER_HAND, BYTES_PER_VERTEX = 520, {"all": 9.5, "mesh": 7.7, "joints": 0.0}

#: Bytes per sample, and per vertex of it (docs/labels.md).
BYTES_PER_SAMPLE, BYTES_PER_SAMPLE_VERTEX = 100, 4.4

#: Entries between two progress reports.
_REPORT_EVERY = 1000


@dataclass(frozen=True)
class Estimate:
    """Photos of a source, finished and remaining, with the cost of the remaining ones."""

    photos: int
    done: int
    photos_per_s: float  # of a job on this machine
    bytes_per_hand: float
    labels: str

    @property
    def remaining(self) -> int:
        """Photos without a row."""
        return self.photos - self.done

    def table(self) -> list[tuple[str, ...]]:
        """Return rows to print."""
        megabytes = self.remaining * self.bytes_per_hand / 1e6
        size = f"{megabytes / 1000:,.1f} GB" if megabytes > 1000 else f"{megabytes:.1f} MB"
        return [
            ("photos", f"{self.photos:,}", f"{self.done:,} already labelled"),
            ("remaining", f"{self.remaining:,}", ""),
            (
                "time",
                time_left(self.remaining / self.photos_per_s),
                f"at {self.photos_per_s:.0f} photos/s, all cores of this machine; less on a cluster",
            ),
            ("labels", size, f"{self.bytes_per_hand / 1000:.1f} KB per hand, one hand per photo"),
            ("written to", without_secrets(self.labels), ""),
        ]


def estimate(
    source: str,
    labels: str,
    options: LabelOptions,
    address: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Estimate:
    """List the whole source, and time the model on this machine for a few seconds. A detector's time is not included.

    `address`: the Ray cluster of the run, which must gain by the precision. Errors are those of `annotate`.
    """
    import torch

    from annotator.predictor import load

    job = annotate_job(source, labels, options, is_dry=True)
    checked_record(job)
    check_precision(options.precision, address)
    done_shards, manifest = DoneShards(job.labels), Manifest(job.labels)
    done = sum(count for number, count in manifest.counts() if number in done_shards)
    count = manifest.photo_count
    for entry in manifest.unplanned(job.source):
        count += not entry.first_hand
        if count % _REPORT_EVERY == 0:
            on_progress(count, count)
    predictor = load(options.checkpoint, options.hand, precision=options.precision)
    models = 1 if predictor.device.type == "cuda" else os.cpu_count() or 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each worker of a job has
    rate = predictor.photos_per_s(options.columns) * models * JOB_EFFICIENCY
    torch.set_num_threads(threads)
    bytes_per_hand = BYTES_PER_HAND + BYTES_PER_VERTEX[options.columns] * job.settings.vertex_count
    bytes_per_hand += job.settings.samples * (
        BYTES_PER_SAMPLE + BYTES_PER_SAMPLE_VERTEX * job.settings.vertex_count
    )
    return Estimate(count, done, rate, bytes_per_hand, job.labels)
