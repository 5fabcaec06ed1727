"""Frames/s and memory over time from a video file to tracked labels: one synthetic hand that moves back and forth.

python benchmarks/long_video.py [FRAMES ...] [--model hand_landmarker.task] [--detect-every 8] [--checkpoint default]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import av
import numpy as np
import psutil
from common import machine, print_figures
from following import SHARED
from numpy.typing import NDArray

from annotator.hand import load_hand
from trainer.synth.sequences import Sequences

#: Frames that are drawn; the video shows them forwards and backwards.
DRAWN, SIZE_PX, SEED, RATE_HZ = 120, 320, 3, 30

_EVERY_S = 1.0
_CLI = Path(__file__).parents[1] / "cli.py"

#: Kinds of processes by the start of Ray's titles; others are Ray's own.
_KINDS = {"ray::WorkerActor": "model", "ray::": "task"}


@dataclass
class Memory:
    """Resident megabytes of a command's processes, each second."""

    total_mb: list[float] = field(default_factory=list)
    of_kind_mb: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # the largest process's
    processes: int = 0  # at once, at most

    def take(self, root: psutil.Process) -> None:
        """Take a sample."""
        total = 0.0
        tree = [root, *root.children(recursive=True)]
        self.processes = max(self.processes, len(tree))
        for process in tree:
            try:
                megabytes, title = process.memory_info().rss / 1e6, " ".join(process.cmdline())
            except psutil.Error:
                continue
            total += megabytes
            kind = next((kind for start, kind in _KINDS.items() if title.startswith(start)), "ray")
            kind = "driver" if process == root else kind
            self.of_kind_mb[kind] = max(self.of_kind_mb[kind], megabytes)
        self.total_mb.append(total)

    def thirds_mb(self) -> list[float]:
        """Return the largest sum of all processes in each third of the time."""
        return [float(part.max()) for part in np.array_split(np.array(self.total_mb), 3) if len(part)]


def run(*arguments: str) -> tuple[float, Memory]:
    """Run a command of `amvur`; return its seconds, and the memory of its processes."""
    began = time.perf_counter()
    command = subprocess.Popen([sys.executable, str(_CLI), *arguments], stdout=subprocess.DEVNULL)
    root, memory, ended = psutil.Process(command.pid), Memory(), threading.Event()

    def sample() -> None:
        while not ended.wait(_EVERY_S):
            try:
                memory.take(root)
            except psutil.NoSuchProcess:
                return

    sampler = threading.Thread(target=sample)
    sampler.start()
    status = command.wait()
    seconds = time.perf_counter() - began
    ended.set()
    sampler.join()
    if status:
        raise SystemExit(f"amvur {' '.join(arguments)} ended with status {status}")
    return seconds, memory


def write_video(path: Path, frames: int, drawn: NDArray[np.uint8]) -> None:
    """Write a video of `frames` frames that shows pictures (n, H, W, 3) forwards and backwards."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE_HZ, options={"preset": "veryfast", "crf": "20"})
        stream.width = stream.height = SIZE_PX
        stream.pix_fmt = "yuv420p"
        for picture in islice(cycle(np.concatenate([drawn, drawn[-2:0:-1]])), frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def main() -> None:
    """Print a row for each length and command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("frames", nargs="*", type=int, default=[1_000, 10_000])
    parser.add_argument("--model", default=str(SHARED / "models" / "hand_landmarker.task"))
    parser.add_argument("--detect-every", default="8")
    parser.add_argument("--checkpoint", default="default")
    given = parser.parse_args()
    print(machine())
    photos = Sequences(load_hand("open"), SIZE_PX, SEED).sequence(0, DRAWN).photos.image
    drawn = np.ascontiguousarray(photos.permute(0, 2, 3, 1).numpy())
    print(
        "| frames | command | s | frames/s | driver, MB | model, MB | task, MB | all, in thirds of the time, MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    figures: dict[str, float] = {}
    for frames in given.frames:
        with tempfile.TemporaryDirectory() as folder:
            video, labels, tracked = (str(Path(folder) / name) for name in ("long.mp4", "labels", "tracked"))
            write_video(Path(video), frames, drawn)
            options = ["--detector", given.model, "--detect-every", given.detect_every]
            options += ["--max-hands", "1", "--checkpoint", given.checkpoint]
            seconds = 0.0
            for name, arguments in (
                ("annotate", ("annotate", video, labels, *options)),
                ("track", ("track", labels, tracked)),
            ):
                own_s, memory = run(*arguments)
                seconds += own_s
                kinds = " | ".join(f"{memory.of_kind_mb[kind]:.0f}" for kind in ("driver", "model", "task"))
                thirds = ", ".join(f"{one:.0f}" for one in memory.thirds_mb())
                rate = frames / own_s
                print(f"| {frames:,} | {name} | {own_s:.0f} | {rate:.1f} | {kinds} | {thirds} |", flush=True)
                figures[f"{frames:,} frames, {name}, peak MB"] = max(memory.total_mb)
            figures[f"{frames:,} frames, file to tracked labels, frames/s"] = frames / seconds
    print_figures(figures)


if __name__ == "__main__":
    main()
