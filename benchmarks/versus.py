"""Compare the job with alternatives: `python benchmarks/versus.py [PHOTOS] [--model MODEL]`.

Photos/s on the same crops, without start-up. Candidates alternate, so that drift of the machine cancels:

- the job: `annotate` with two workers of one thread (the default on two cores), and with one of two;
- a loop: a `DataLoader` with Pillow, the same network, the same columns, written with pyarrow;
- the bare network on prepared crops, with the processes and threads of each job;
- MediaPipe's hand landmarker (MODEL is its hand_landmarker.task), joints only.

The job gets `side="right"`, like the loop, so no hand is predicted twice. Job and loop label each photo four times, so
that start and end weigh little. Ratios are medians over rounds; the last line is JSON with all figures.
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
from common import machine, photo_folder, prepared, print_figures
from growth import linked, pace_ms
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import annotator
from annotator.job.options import ComputeOptions
from annotator.job.run import Progress
from annotator.labels.schema import label_schema, labels_to_table
from annotator.photos.crops import Crops, Side, crop_photo
from annotator.runtime.malloc import keep_freed_memory
from annotator.sources import open_source

BATCH, SHARD = 32, 256

#: Repeats of each photo in the job and the loop.
TIMES = 4


class PhotoFolder(Dataset[tuple[str, np.ndarray]]):
    """A minimal data set: Pillow opens, converts and resizes."""

    def __init__(self, paths: list[str], crop_px: int) -> None:
        self.paths, self.crop_px = paths, crop_px

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray]:
        image = Image.open(self.paths[index]).convert("RGB").resize((self.crop_px, self.crop_px))
        return self.paths[index], np.asarray(image)


def loop(paths: list[str], out: Path) -> float:
    """Measure photos/s of a plain loop that writes the columns of a label."""
    torch.set_num_threads(2)
    predictor = annotator.load("default", device="cpu")
    checkpoint = predictor.checkpoint
    crop_px = checkpoint.info.network.crop_px
    schema = label_schema(predictor.checkpoint.hand.vertex_count)
    loader = DataLoader(PhotoFolder(paths, crop_px), BATCH, num_workers=1, collate_fn=list)
    tables, done, began = [], 0, 0.0
    out.mkdir()
    for batch in loader:
        cut = [
            crop_photo(pixels, crop_px, crop_px, checkpoint.cut_px, margin=checkpoint.cut_margin)
            for _, pixels in batch
        ]
        crops = Crops.stack(cut)
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
    """Measure photos/s of the forward pass in one process, with the memory settings of the job."""
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
    """Measure photos/s of `annotate`, without start and end."""
    done: list[tuple[float, int]] = []

    def note(progress: Progress) -> None:
        if progress.photos:
            done.append((time.time(), progress.photos))

    annotator.annotate(str(photos), str(labels), side=side, compute=compute, on_progress=note)
    return 1000 / pace_ms(done, compute.workers or 1)


def bare(photos: Path, threads: int) -> float:
    """Measure photos/s of the network alone in this process."""
    checkpoint = annotator.load("default").checkpoint
    return bare_network(prepared(photos, checkpoint.cut_px, checkpoint.cut_margin), threads, BATCH)


def mediapipe(paths: list[str], model: str) -> float:
    """Measure photos/s of MediaPipe on photos that are crops."""
    from annotator.detection.detector import HandDetector

    detector = HandDetector(model, max_hands=1)
    began = 0.0
    for number, path in enumerate(paths):
        if number == 10:
            began = time.perf_counter()
        pixels = np.asarray(Image.open(path).convert("RGB"))
        detector.detect(pixels, pixels.shape[1], pixels.shape[0])
    return (len(paths) - 10) / (time.perf_counter() - began)


def in_a_process(what: str, photos: Path, *rest: str) -> Callable[[], subprocess.Popen[str]]:
    """Return a function that starts this file in its own process, which prints a rate."""
    command = [sys.executable, __file__, str(photos), "--only", what, *rest]
    return lambda: subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def rate_of(start: Callable[[], subprocess.Popen[str]], at_once: int = 1) -> float:
    """Return the sum of the rates of `at_once` parallel processes."""
    running = [start() for _ in range(at_once)]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit(f"a measurement ended with exit code {[process.returncode for process in running]}")
    return sum(float(output.split()[-1]) for output in outputs)


def count_of(photos: Path) -> int:
    """Return the number of photos."""
    return sum(1 for _ in open_source(str(photos)))


def only(what: str, photos: Path, count: int, model: str | None) -> float:
    """Run one measurement in this process."""
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
    """Print the table, then one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "photos", nargs="?", help="folder of photos, each a crop; default: 2,048 synthetic ones"
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
    print("| | photos/s, median | per round |\n|---|---|---|")
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
    print_figures(found, rates=rates)


if __name__ == "__main__":
    main()
