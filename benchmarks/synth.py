"""Measure the drawing of synthetic hands on one thread and in two processes: `python benchmarks/synth.py`.

CPU time counts this process alone, without other load on the machine; the rate uses wall time.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from common import machine, print_figures

from annotator.hand import load_hand
from annotator.runtime.malloc import keep_freed_memory
from annotator.runtime.process_pool import process_pool
from trainer.synth import SyntheticHands, camera, hands, occluders, surface_samples

#: Timed functions by the module that calls them; functions below another's line are part of it.
STAGES: tuple[tuple[Any, str], ...] = (
    (hands.Scenes, "sample"),
    (SyntheticHands, "drawn"),
    (hands, "samples"),
    (surface_samples, "nearest_faces"),
    (hands, "reached"),
    (hands, "painted"),
    (hands, "backgrounds"),
    (occluders, "cover_with_objects"),
    (occluders, "beyond_the_photo"),
    (camera, "blurred_by_lens"),
    (camera, "taken"),
    (camera, "jpeg"),
)


@contextmanager
def timed(seconds: dict[str, float]) -> Iterator[None]:
    """Add the CPU time of each stage."""

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = function(*args, **kwargs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name] += time.process_time() - start
            return result

        return run

    plain = [getattr(where, name) for where, name in STAGES]
    for (where, name), function in zip(STAGES, plain, strict=True):
        setattr(where, name, wrapped(name, function))
    try:
        yield
    finally:
        for (where, name), function in zip(STAGES, plain, strict=True):
            setattr(where, name, function)


def draw(first: int, batches: int, options: argparse.Namespace) -> tuple[float, float]:
    """Return wall and CPU seconds of some batches, after one warm-up."""
    torch.set_num_threads(1)
    keep_freed_memory()
    source = SyntheticHands(load_hand("open"), options.size_px, seed=0, device=options.device)
    source.batch(torch.arange(options.batch))
    start, cpu = time.perf_counter(), time.process_time()
    for number in range(batches):
        source.batch(torch.arange(options.batch) + first + number * options.batch)
    if options.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-px", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(machine())
    photos = options.batch * options.batches
    seconds: dict[str, float] = defaultdict(float)
    wall, cpu = draw(0, options.batches, options)
    figures = {
        f"{options.size_px} px, 1 thread, photos/s": photos / wall,
        f"{options.size_px} px, 1 thread, ms of a core per photo": cpu / photos * 1000,
    }
    with timed(seconds):
        draw(0, options.batches, options)
    for name, spent in seconds.items():
        # One more batch was drawn as warm-up.
        print(f"    {name}: {spent / (photos + options.batch) * 1000:.2f} ms")
    if options.device != "cpu":
        print_figures(figures)
        return
    with process_pool(2) as pool:
        runs = list(pool.map(draw, (0, photos), [options.batches] * 2, [options] * 2))
    slowest = max(wall for wall, _ in runs)
    cpu = sum(cpu for _, cpu in runs)
    figures |= {
        f"{options.size_px} px, 2 processes, photos/s": 2 * photos / slowest,
        f"{options.size_px} px, 2 processes, ms of a core per photo": cpu / photos / 2 * 1000,
    }
    print_figures(figures)


if __name__ == "__main__":
    main()
