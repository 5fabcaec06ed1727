"""Measure the overhead of the job alone: a million rows without decoding or prediction.

    python benchmarks/scale.py [--rows 10000 100000 1000000]

Lists of rows go through `run_job`: lease, listing, manifest, Ray, tasks, actors, label files, outcomes. Stages only
make rows of scalar columns. Figures per size: rows/s, seconds to the first label file, and the driver's peak memory,
also over that of the smallest size. The last is seconds of the same command on a finished run. Photos need not exist.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa
from common import machine, print_figures

from annotator.job.options import ComputeOptions
from annotator.job.resources import plan_workers
from annotator.job.run import Job, run_job
from annotator.job.shard import Shard
from annotator.job.stages import Stages, first_row
from annotator.labels.schema import label_schema
from annotator.sources import open_source
from annotator.sources.entry import Entry

#: Columns left out of rows.
_HEAVY = frozenset(
    ["vertices_mm", "vertices_std_mm", "vertex_rgb", "vertex_visible", "joints3d_mm", "joints3d_std_mm"]
    + ["joints2d_px", "joints2d_std_px", "pose", "betas", "camera"]
)


@dataclass(frozen=True)
class NothingSettings:
    """Settings of an empty job."""

    source: str


def open_nothing(entries: Sequence[Entry]) -> Shard:
    """Return a shard of rows without crops."""
    rows = [first_row(entry) | {"hand_index": 0} for entry in entries]
    return Shard(rows, list(range(len(rows))))


class NoModel:
    """Model that predicts nothing."""

    def __call__(self, shard: Shard) -> Shard:
        """Give every row the status ok."""
        for row in shard.rows:
            row["status"] = "ok"
        return Shard(shard.rows)


def null_job(source: str, labels: str, shard_size: int) -> None:
    """Run the job of `amvur annotate` without photos and networks."""
    photos = open_source(source)
    narrow = [field for field in label_schema(1, passed=photos.columns) if field.name not in _HEAVY]
    stages = Stages(open_nothing, NoModel, pa.schema(narrow))
    job = Job(labels, photos, NothingSettings(photos.place), lambda _: stages, plan_workers, {})
    record = run_job(job, ComputeOptions(threads=1, shard_size=shard_size))
    print(json.dumps(record.outcomes))


def measured(source: Path, labels: Path, shard_size: int) -> dict[str, Any]:
    """Run the job in its own process, and measure it."""
    command = [sys.executable, __file__, "--job", str(source), str(labels), "--shard-size", str(shard_size)]
    started = time.monotonic()
    driver = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    first: float | None = None
    peak, cpu_s = 0, 0.0
    data = labels / "data"
    while driver.poll() is None:
        if first is None and data.is_dir() and any(data.iterdir()):
            first = time.monotonic() - started
        with suppress(psutil.Error):
            peak = max(peak, driver.memory_info().rss)
            cpu_s = sum(driver.cpu_times()[:2])
        time.sleep(0.1)
    if driver.returncode:
        sys.exit(f"the job ended with exit code {driver.returncode}")
    return {
        "seconds": time.monotonic() - started,
        "first_s": first,
        "peak_bytes": peak,
        "driver_cpu_s": cpu_s,
    }


def main() -> None:
    """Print the table, then one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        null_job(args.job[0], args.job[1], args.shard_size)
        return
    print(machine())
    scratch = Path(tempfile.mkdtemp(prefix="amvur-scale-"))
    results = []
    for rows in args.rows:
        source, labels = scratch / f"{rows}.csv", scratch / f"labels-{rows}"
        with source.open("w") as file:
            file.write("uri,subject\n")
            file.writelines(f"s3://photos/subject-{k % 977:03d}/{k:09d}.jpg,{k % 977}\n" for k in range(rows))
        run, resumed = measured(source, labels, args.shard_size), measured(source, labels, args.shard_size)
        counted = f"select count(*), count(distinct image_id) from '{labels}/data/*.parquet'"
        found = duckdb.execute(counted).fetchall()[0]
        assert found == (rows, rows), f"{found} rows of {rows}"
        results.append({"rows": rows, **run, "resumed_s": resumed["seconds"]})
        print(
            f"{rows:9,} rows: {rows / run['seconds']:7.0f} rows/s, first labels after {run['first_s']:.1f} s, driver "
            f"{run['peak_bytes'] / 2**20:.0f} MiB and {run['driver_cpu_s']:.0f} s of a core; finished already: "
            f"{resumed['seconds']:.1f} s, driver {resumed['peak_bytes'] / 2**20:.0f} MiB"
        )
        shutil.rmtree(labels)
    growth = results[-1]["peak_bytes"] / results[0]["peak_bytes"]
    shutil.rmtree(scratch)
    last = results[-1]
    print_figures(
        {
            "driver's memory, most rows over fewest": growth,
            f"{last['rows']:,} rows, rows/s": last["rows"] / last["seconds"],
            f"{last['rows']:,} rows, first label file, s": last["first_s"],
            f"{last['rows']:,} rows, finished already, s": last["resumed_s"],
        },
        runs=results,
    )


if __name__ == "__main__":
    main()
