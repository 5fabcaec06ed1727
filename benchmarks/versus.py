"""The job beside what a user would take instead: `python benchmarks/versus.py [PHOTOS] [--model MODEL]`.

Photos a second of the same crops, start-up left out, one after the other in turns, so that a machine that drifts
decides nothing:

- the job: `annotate`, two workers of one thread (the default on two cores), and one of two;
- a loop: a `DataLoader` of Pillow's photos, the same network, the same columns, written with pyarrow;
- the bare network, on crops that lie ready, with as many processes and threads as each job;
- MediaPipe's hand landmarker (MODEL is its hand_landmarker.task), joints only.

The job is told that all hands are right ones, as the loop takes them: nobody looks twice. It and the loop label each
photo four times, so that their ends weigh little. Ratios are medians over rounds; the last line is all of it as JSON.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from growth import linked, pace_ms
from machine import machine, photo_folder, prepared, tell
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import annotator
from annotator.job.resources import ComputeOptions
from annotator.job.run import Progress
from annotator.labels.schema import label_schema, labels_to_table
from annotator.photos.crops import Crops, Side, crop_photo
from annotator.runtime.malloc import keep_freed_memory
from annotator.sources import open_source

BATCH, SHARD = 32, 256

#: How often the job and the loop label each photo.
TIMES = 4


class PhotoFolder(Dataset[tuple[str, np.ndarray]]):
    """What one writes in five minutes: Pillow opens, converts and resizes."""

    def __init__(self, paths: list[str], crop_px: int) -> None:
        self.paths, self.crop_px = paths, crop_px

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray]:
        image = Image.open(self.paths[index]).convert("RGB").resize((self.crop_px, self.crop_px))
        return self.paths[index], np.asarray(image)


def loop(paths: list[str], out: Path) -> float:
    """Photos/s of a plain loop that writes the columns of a label."""
    torch.set_num_threads(2)
    predictor = annotator.load("default", device="cpu")
    crop_px = predictor.checkpoint.info.network.crop_px
    schema = label_schema(predictor.checkpoint.hand.vertex_count)
    loader = DataLoader(PhotoFolder(paths, crop_px), BATCH, num_workers=1, collate_fn=list)
    tables, done, began = [], 0, 0.0
    out.mkdir()
    for batch in loader:
        crops = Crops.stack([crop_photo(pixels, crop_px, crop_px, crop_px) for _, pixels in batch])
        hands = predictor.predict_crops(crops, side="right")
        rows = [{"image_uri": path, "image_id": path, "status": "ok", "hand_index": 0} for path, _ in batch]
        tables.append(labels_to_table(rows, hands, range(len(rows)), schema))
        if len(tables) == SHARD // BATCH:
            pq.write_table(pa.concat_tables(tables), out / f"{done}.parquet")
            tables = []
        if began:
            done += len(batch)
        else:  # the first batch also starts the loader
            began = time.perf_counter()
    if tables:
        pq.write_table(pa.concat_tables(tables), out / "rest.parquet")
    return done / (time.perf_counter() - began)


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


def job(photos: Path, labels: Path, compute: ComputeOptions, side: Side) -> float:
    """Photos/s of `annotate`, start-up and end left out."""
    done: list[tuple[float, int]] = []

    def note(progress: Progress) -> None:
        if progress.photos:
            done.append((time.time(), progress.photos))

    annotator.annotate(str(photos), str(labels), side=side, compute=compute, on_progress=note)
    return 1000 / pace_ms(done, compute.workers or 1)


def bare(photos: Path, threads: int) -> float:
    """Photos/s of the network alone in this process."""
    return bare_network(prepared(photos, annotator.load("default").checkpoint.cut_px), threads, BATCH)


def mediapipe(paths: list[str], model: str) -> float:
    """Photos/s of MediaPipe on photos that are crops."""
    from annotator.detection.detector import HandDetector

    detector = HandDetector(model, max_hands=1)
    began = 0.0
    for number, path in enumerate(paths):
        if number == 10:
            began = time.perf_counter()
        pixels = np.asarray(Image.open(path).convert("RGB"))
        detector.find(pixels, pixels.shape[1], pixels.shape[0])
    return (len(paths) - 10) / (time.perf_counter() - began)


def in_a_process(what: str, photos: Path, *rest: str) -> Callable[[], subprocess.Popen[str]]:
    """Starts this file in a process of its own, which prints a rate."""
    command = [sys.executable, __file__, str(photos), "--only", what, *rest]
    return lambda: subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def rate_of(start: Callable[[], subprocess.Popen[str]], at_once: int = 1) -> float:
    """The sum of the rates of so many processes at once."""
    running = [start() for _ in range(at_once)]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit(f"a measurement ended with exit code {[process.returncode for process in running]}")
    return sum(float(words.split()[-1]) for words in said)


def count_of(photos: Path) -> int:
    """How many there are."""
    return sum(1 for _ in open_source(str(photos)))


def only(what: str, photos: Path, count: int, model: str | None) -> float:
    """One measurement, in this process."""
    if what.startswith("bare"):
        return bare(photos, int(what[-1]))
    if what.startswith("job"):
        with tempfile.TemporaryDirectory() as scratch:
            compute = ComputeOptions(int(what[-2]), int(what[-1]), BATCH, SHARD)
            many = linked(photos, TIMES * count_of(photos), Path(scratch) / "photos")
            return job(many, Path(scratch) / "labels", compute, side="right")
    paths = [entry.path for entry in open_source(str(photos))][: count or None]
    if what == "mediapipe":
        assert model
        return mediapipe(paths, model)
    with tempfile.TemporaryDirectory() as scratch:
        return loop(paths * TIMES, Path(scratch) / "labels")


def main() -> None:
    """Print the table; one JSON line last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "photos", nargs="?", help="a folder of photos, each a crop; default 2,048 synthetic ones"
    )
    parser.add_argument("--model", help="MediaPipe's hand_landmarker.task; without it, MediaPipe is left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(only(args.only, Path(args.photos), 400 if args.only == "mediapipe" else 0, args.model))
        return
    print(machine())
    photos = photo_folder(args.photos, 2048)
    kinds = {
        "the job, one worker of two threads": ("job12", 1),
        "the job, two workers of one thread": ("job21", 1),
        "a DataLoader loop": ("loop", 1),
        "the bare network, two threads": ("bare2", 1),
        "the bare network, two processes of one thread": ("bare1", 2),
    }
    if args.model:
        kinds["MediaPipe, joints only"] = ("mediapipe", 1)
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(args.rounds):
        for name, (what, at_once) in kinds.items():
            extra = ("--model", args.model) if what == "mediapipe" else ()
            rates[name].append(rate_of(in_a_process(what, photos, *extra), at_once))
            print(f"{name}: {rates[name][-1]:.1f} photos/s", flush=True)
    print("| | photos/s, median | of each round |\n|---|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {np.median(values):.0f} | {', '.join(f'{value:.0f}' for value in values)} |")
    ratios = {
        "job over loop": ("the job, two workers of one thread", "a DataLoader loop"),
        "job over bare, two workers": (
            "the job, two workers of one thread",
            "the bare network, two processes of one thread",
        ),
        "job over bare, one worker": ("the job, one worker of two threads", "the bare network, two threads"),
    }
    if args.model:
        ratios["job over MediaPipe"] = ("the job, two workers of one thread", "MediaPipe, joints only")
    found = {
        name: float(np.median(np.array(rates[a]) / np.array(rates[b]))) for name, (a, b) in ratios.items()
    }
    tell(found, rates=rates)


if __name__ == "__main__":
    main()
