"""What `annotate` would do: how many photos, how long, how many bytes, and where to. Nothing is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from annotator.commands.annotate import annotation
from annotator.job.manifest import DoneShards, Manifest
from annotator.job.run import record_of
from annotator.runtime.progress import time_left
from annotator.storage.remote import shown

#: Of the photos a second of a model alone, times as many as there are cores, what a job keeps that looks twice at hands
#: that may be left ones (docs/benchmarks.md).
JOB_EFFICIENCY = 0.6

#: Bytes of a hand's label, whatever the hand model, and for each vertex (docs/benchmarks.md).
BYTES_A_HAND, BYTES_A_VERTEX = 520, 9.5

#: The same for each drawn mesh (docs/labels.md).
BYTES_A_DRAW, BYTES_A_DRAWN_VERTEX = 100, 4.4

#: How often a count is told.
_TELL_EVERY = 1000


@dataclass(frozen=True)
class Estimate:
    """What is there, and what is left to do."""

    photos: int
    done: int
    photos_per_s: float  # of a job on this machine
    bytes_a_hand: float
    labels: str

    @property
    def left(self) -> int:
        """Photos without a row."""
        return self.photos - self.done

    def table(self) -> list[tuple[str, ...]]:
        """For people."""
        megabytes = self.left * self.bytes_a_hand / 1e6
        size = f"{megabytes / 1000:,.1f} GB" if megabytes > 1000 else f"{megabytes:.1f} MB"
        return [
            ("photos", f"{self.photos:,}", f"{self.done:,} of them have a row already"),
            ("to do", f"{self.left:,}", ""),
            (
                "time",
                time_left(self.left / self.photos_per_s),
                f"at {self.photos_per_s:.0f} photos/s, all cores of this machine; a cluster's share it",
            ),
            ("labels", size, f"{self.bytes_a_hand / 1000:.1f} KB a hand, one hand a photo"),
            ("written to", shown(self.labels), ""),
        ]


def estimate(
    source: str,
    labels: str,
    *,
    checkpoint: str = "default",
    hand: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **others: Any,
) -> Estimate:
    """Walk the whole source, and time the model on this machine for a few seconds; a detector's time is left out.

    Arguments and errors are those of `annotate`.
    """
    import torch

    from annotator.predictor import load

    job = annotation(source, labels, checkpoint=checkpoint, hand=hand, is_dry=True, **others)
    record_of(job)
    done_shards, manifest = DoneShards(job.labels), Manifest(job.labels)
    done = sum(count for number, count in manifest.counts() if number in done_shards)
    count = manifest.photo_count
    for entry in manifest.unplanned(job.source):
        count += not entry.first_hand
        if count % _TELL_EVERY == 0:
            on_progress(count, count)
    predictor = load(checkpoint, hand)
    models = 1 if predictor.device.type == "cuda" else os.cpu_count() or 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of them has
    rate = predictor.photos_per_s() * models * JOB_EFFICIENCY
    torch.set_num_threads(threads)
    bytes_a_hand = BYTES_A_HAND + BYTES_A_VERTEX * job.settings.vertex_count
    bytes_a_hand += job.settings.samples * (BYTES_A_DRAW + BYTES_A_DRAWN_VERTEX * job.settings.vertex_count)
    return Estimate(count, done, rate, bytes_a_hand, job.labels)
