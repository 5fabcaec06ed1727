"""How much of the bare network's speed the whole job keeps, and whether every photo is accounted for.

    python benchmarks/pipeline.py [PHOTOS] [--kill]

Efficiency: photos/s of `annotate` from the moment its second shard's prediction begins to its last committed shard
(start-up left out: while the first one is predicted, Ray is still starting other workers), over photos/s of the
network's forward pass alone on the same crops, in as many processes with as many threads. The bare network is timed
before and after each job and the mean taken, so that a machine that drifts does not decide. With `--kill` the
driver is killed (-9) in the middle and started again, and the rows are counted then.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import torch
from machine import machine, photo_folder

import annotator
from annotator.allocator import keep_freed_memory
from annotator.crew import ComputeOptions
from annotator.io.crops import Crops, Side, crop_photo
from annotator.io.decode import PhotoError, decode_photo, read_photo
from annotator.io.sources import FolderSource
from annotator.job import Progress


def prepared(photos: Path, crop_px: int) -> torch.Tensor:
    """The crops of all readable photos as the network takes them (n, 3, crop_px, crop_px)."""
    cut = []
    for entry in FolderSource(str(photos)):
        try:
            photo = decode_photo(read_photo(entry.path), min_side_px=crop_px)
        except PhotoError:
            continue
        cut.append(crop_photo(photo.pixels, photo.width, photo.height, crop_px))
    pixels = torch.from_numpy(Crops.stack(cut).pixels)
    return pixels.permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)


def bare_network(images: torch.Tensor, threads: int, batch_size: int) -> float:
    """Photos/s of the forward pass alone, one process, its memory kept as the job's is."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    network = annotator.load("default", device="cpu").network
    with torch.inference_mode():
        for _ in range(3):
            network(images[:batch_size])
        started = time.perf_counter()
        for start in range(0, len(images), batch_size):
            network(images[start : start + batch_size])
    return len(images) / (time.perf_counter() - started)


def job(
    photos: Path, labels: Path, compute: ComputeOptions, side: Side = "auto"
) -> tuple[float, float, float, float]:
    """Photos/s from each worker's second shard on, and from the first; seconds to the first shard, seconds in all."""
    told: list[tuple[float, Progress]] = []
    started = time.time()
    annotator.annotate(
        str(photos),
        str(labels),
        side=side,
        compute=compute,
        on_progress=lambda p: told.append((time.time(), p)),
    )
    workers = compute.workers or 1
    first, last = told[1], told[-1]  # told[0] is told before any shard
    done, second = told[workers][1], told[workers + 1][1]
    after_first = (last[1].photos - done.photos) / (last[0] - second.shard_began)
    return after_first, last[1].rate, first[0] - started, time.time() - started


def killed_job(photos: Path, labels: Path, compute: ComputeOptions) -> int:
    """Kill the driver once a few shards are there, then run to the end; how many shards there were."""
    command = [sys.executable, "-m", "cli", "annotate", str(photos), str(labels)]
    command += ["--threads", str(compute.threads), "--shard-size", str(compute.shard_size)]
    driver = subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
    while driver.poll() is None and len(list(labels.glob("data/*.parquet"))) < 3:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    there = len(list(labels.glob("data/*.parquet")))
    annotator.annotate(str(photos), str(labels), compute=compute)
    return there


def account(photos: Path, labels: Path) -> str:
    """Photos in, rows out, lost and doubled, counted by DuckDB."""
    wanted = {entry.id for entry in FolderSource(str(photos))}
    rows = duckdb.execute(f"select image_id from '{labels}/data/*.parquet'").fetchall()
    found = [row[0] for row in rows]
    lost, twice = len(wanted - set(found)), len(found) - len(set(found))
    return f"{len(wanted)} photos in, {len(found)} rows out, {lost} lost, {twice} twice"


def main() -> None:
    """Print the table; one JSON line last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?", help="a folder of photos; default 1,024 synthetic ones")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--kill", action="store_true")
    args = parser.parse_args()
    print(machine())
    photos = photo_folder(args.photos, 1024)
    compute = ComputeOptions(1, args.threads, args.batch_size, args.shard_size)
    scratch = Path(tempfile.mkdtemp(prefix="amvur-bench-"))
    images = prepared(photos, annotator.load("default").checkpoint.info.network.crop_px)
    results = []
    bare = [bare_network(images, args.threads, args.batch_size)]
    for round_number in range(args.repeat):
        labels = scratch / f"labels-{round_number}"
        rate, with_start, first, whole = job(photos, labels, compute)
        bare.append(bare_network(images, args.threads, args.batch_size))
        efficiency = rate / ((bare[-1] + bare[-2]) / 2)
        results.append(efficiency)
        print(
            f"job {rate:.1f} photos/s, bare network {bare[-2]:.1f} and {bare[-1]:.1f}: efficiency {efficiency:.3f}; "
            f"{with_start:.1f} from the first prediction on; first shard after {first:.1f} s, {whole:.1f} s in all"
        )
        print(account(photos, labels))
    if args.kill:
        labels = scratch / "killed"
        there = killed_job(photos, labels, compute)
        print(f"driver killed with {there} shards done, started again: {account(photos, labels)}")
    print(json.dumps({"efficiency": float(np.median(results)), "bare_photos_per_s": float(np.median(bare))}))
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
