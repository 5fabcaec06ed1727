"""Measure growth with the size of a collection and the number of workers: `python benchmarks/growth.py [PHOTOS]`.

`annotate` labels the given numbers of links to PHOTOS, alternating between sizes, each run in its own process. Figures
per run: milliseconds per photo (without start and end), seconds to the first label, and peak memory of the process tree
as proportional set size (PSS). The largest run is also split into tenths. Then one collection is labelled by 1, 2 and 4
workers of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from common import machine, photo_folder, print_figures

import annotator
from annotator.job.options import ComputeOptions
from annotator.sources import FolderSource

#: One batch of the network, small enough that a thousand photos give each worker several shards.
SHARD = 32

#: Approximate maximum of shards in flight per worker.
AHEAD_A_WORKER = 8

#: Seconds between progress reports, because a thousand photos take only a few seconds.
SIZES = [1_000, 10_000, 1_000, 100_000, 1_000, 10_000, 1_000, 1_000]

#: Seconds between memory samples: each takes some milliseconds of a core.
LOOK_S = 1.0


@dataclass
class Run:
    """Measurements of one run."""

    photos: int
    workers: int | None
    began: float
    reports: list[tuple[float, int]]  # time and photos done
    peak_bytes: int
    ended: float

    @property
    def first_s(self) -> float:
        """Return the seconds to the first label file."""
        return self._done()[0][0] - self.began

    def _done(self) -> list[tuple[float, int]]:
        return [(when, done) for when, done in self.reports if done]

    def ms_a_photo(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return milliseconds per photo over a part of the run, without start and end."""
        return pace_ms(self._done(), self.workers or os.cpu_count() or 1, low, high)


def pace_ms(done: list[tuple[float, int]], workers: int, low: float = 0.0, high: float = 1.0) -> float:
    """Return milliseconds per photo over a part of a run, from its progress reports.

    The first shards are left out, because they were opened while models started. The last ones are left out too,
    because some workers are already idle.
    """
    inside = done[AHEAD_A_WORKER * workers : -workers]
    inside = inside[round(low * (len(inside) - 1)) : round(high * (len(inside) - 1)) + 1]
    if len(inside) < 3:
        sys.exit(f"{done[-1][1]} photos are too few for {workers} workers: give more")
    (start, first), (end, last) = inside[0], inside[-1]
    return 1000 * (end - start) / (last - first)


def tree_pss(root: psutil.Process) -> int:
    """Return the bytes of a process and all its descendants."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(
            (int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0
        )
    return total


def linked(photos: Path, count: int, folder: Path) -> Path:
    """Make a folder of `count` links to photos: repeated, or evenly selected."""
    entries = list(FolderSource(str(photos)))
    entries = entries[
        :: max(1, len(entries) // count)
    ]  # evenly: collections are sorted, and left hands cost more
    for number in range(count):
        entry = entries[number % len(entries)]
        link = folder / f"{number // len(entries):05d}" / entry.id.replace("/", "-")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(entry.path)
    return folder


def label(photos: str, labels: str, workers: int | None) -> None:
    """Label in this process, and print the progress reports as JSON."""
    reports: list[tuple[float, int]] = []
    annotator.annotate(
        photos,
        labels,
        compute=ComputeOptions(workers=workers, threads=1 if workers else None, shard_size=SHARD),
        on_progress=lambda progress: reports.append((time.time(), progress.photos)),
    )
    print(json.dumps(reports))


def watched(photos: Path, count: int, workers: int | None, scratch: Path) -> Run:
    """Run `annotate` in a process, and measure it from outside."""
    folder, labels = linked(photos, count, scratch / "photos"), scratch / "labels"
    command = [sys.executable, __file__, str(folder), "--labels", str(labels)]
    began, peak = time.time(), 0
    with tempfile.TemporaryFile("w+") as out:
        process = psutil.Popen(
            command + ["--workers", str(workers or 0)], stdout=out, stderr=subprocess.DEVNULL
        )
        while process.poll() is None:
            peak = max(peak, tree_pss(process))
            time.sleep(LOOK_S)
        if process.returncode:
            sys.exit(f"annotate failed with exit code {process.returncode}")
        out.seek(0)
        reports = json.loads(out.read().splitlines()[-1])
    ended = reports[-1][0]
    shutil.rmtree(folder)
    shutil.rmtree(labels)
    return Run(count, workers, began, reports, peak, ended)


def main() -> None:
    """Print the table, then one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?", help="folder of photos; default: 1,000 synthetic ones")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--of-workers", type=int, default=5_000, help="photos per number of workers")
    parser.add_argument("--rounds", type=int, default=2, help="rounds over the numbers of workers")
    parser.add_argument("--labels", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.labels:
        label(args.photos, args.labels, args.workers or None)
        return
    print(machine())
    photos = photo_folder(args.photos, 1000)
    scratch = Path(tempfile.mkdtemp(prefix="amvur-bench-"))
    runs = []
    requests: list[tuple[int, int | None]] = [(size, None) for size in args.sizes]
    requests += [(args.of_workers, workers) for workers in (1, 2, 4)] * args.rounds
    print("| photos | workers | ms per photo | first label, s | total, s | peak memory, GiB |")
    print("|---|---|---|---|---|---|")
    for count, workers in requests:
        run = watched(photos, count, workers, scratch)
        runs.append(run)
        print(
            f"| {count:,} | {workers or 'default'} | {run.ms_a_photo():.2f} | {run.first_s:.1f} | "
            f"{run.ended - run.began:.0f} | {run.peak_bytes / 2**30:.2f} |",
            flush=True,
        )
    largest = max(runs, key=lambda run: run.photos)
    tenths = [largest.ms_a_photo(k / 10, (k + 1) / 10) for k in range(10)]
    print(f"{largest.photos:,} photos by tenths, ms: {', '.join(f'{ms:.2f}' for ms in tenths)}")

    def median(count: int, workers: int | None) -> float:
        return statistics.median(
            run.ms_a_photo() for run in runs if (run.photos, run.workers) == (count, workers)
        )

    sizes = sorted(set(args.sizes))
    figures = {
        f"ms a photo, {sizes[-1]:,} photos over {size:,}": median(sizes[-1], None) / median(size, None)
        for size in sizes[:-1]
    }
    figures["ms per photo, last tenth over first"] = tenths[-1] / tenths[0]
    figures["peak memory, most photos over fewest"] = largest.peak_bytes / max(
        run.peak_bytes for run in runs if (run.photos, run.workers) == (sizes[0], None)
    )
    figures |= {
        f"photos/s, {workers} workers over 1": median(args.of_workers, 1) / median(args.of_workers, workers)
        for workers in (2, 4)
    }
    shutil.rmtree(scratch)
    print_figures(figures, runs=[vars(run) | {"reports": None} for run in runs], tenths_ms=tenths)


if __name__ == "__main__":
    main()
