"""Our own backbone file against transformers' classes: import time, lines of code; and each backbone's speed.

python benchmarks/backbone_choice.py
"""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine, tell

from annotator.model import backbone
from annotator.model.backbone import BACKBONES, build_backbone
from annotator.runtime.malloc import keep_freed_memory

RUNS = 3
#: Backbones and crop sizes that the shipped network chooses among.
CANDIDATES = (
    ("hand_landmark", 224),
    ("hand_landmark", 192),
    ("hand_landmark", 160),
    ("hand_landmark", 128),
    ("efficientnet_lite0", 96),
)
IMPORTS = {
    "torch alone": "import torch",
    "torch and ours": "import torch; from annotator.model.backbone import ResNet50, EfficientNet",
    "torch and transformers": "import torch; from transformers import ResNetModel, EfficientNetModel",
}


def import_seconds(statement: str) -> float:
    """Median wall time of a fresh process that runs the imports; one uncounted run warms the disk."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def code_lines(path: Path) -> int:
    return sum(1 for line in path.read_text().splitlines() if line.strip())


def photos_per_second(name: str, size_px: int, batch: int = 8) -> float:
    """Median forward rate with two threads, batch norms in evaluation mode."""
    torch.set_num_threads(2)
    model, images = build_backbone(name).eval(), torch.rand(batch, 3, size_px, size_px)
    times = []
    with torch.inference_mode():
        for _ in range(2 * RUNS + 1):
            start = time.perf_counter()
            model(images)
            times.append(time.perf_counter() - start)
    return batch / statistics.median(times[1:])


def milliseconds(step: Callable[[], object], rounds: int, threads: int, batch: int) -> float:
    """Return the least time of a step, milliseconds a photo: other programs only ever make it longer.

    CPU time of one thread, which other programs disturb less; wall time of several.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    step()
    times = []
    for _ in range(rounds):
        start = clock()
        step()
        times.append(clock() - start)
    return 1000 * min(times) / batch


def forward_ms(name: str, size_px: int, threads: int, batch: int = 32) -> float:
    """Measure batches with folded batch norms, without gradients."""
    torch.set_num_threads(threads)
    model, images = build_backbone(name).eval(), torch.rand(batch, 3, size_px, size_px)
    model.fold_normalisation()
    with torch.inference_mode():
        return milliseconds(lambda: model(images), 3 * RUNS, threads, batch)


def training_ms(name: str, size_px: int, threads: int, batch: int = 32) -> float:
    """Measure forward and backward of the features alone, in training mode: no heads, no optimizer."""
    torch.set_num_threads(threads)
    model, images = build_backbone(name).train(), torch.rand(batch, 3, size_px, size_px)
    return milliseconds(lambda: model(images).g.square().mean().backward(), RUNS, threads, batch)


def main() -> None:
    print(machine())
    transformers = importlib.util.find_spec("transformers")
    figures: dict[str, float] = {"our lines": code_lines(Path(backbone.__file__))}
    for label, statement in IMPORTS.items():
        if "transformers" not in statement or transformers is not None:
            figures[f"import {label}, s"] = import_seconds(statement)
    if transformers is not None and transformers.origin is not None:
        models = Path(transformers.origin).parent / "models"
        for name in ("resnet", "efficientnet"):
            figures[f"lines of transformers' {name}"] = code_lines(models / name / f"modeling_{name}.py")
    for name in BACKBONES:
        for size_px in (128, 224):
            figures[f"forward at {size_px} px, {name}, photos/s"] = photos_per_second(name, size_px)
    keep_freed_memory()  # as labelling and training do
    for name, size_px in CANDIDATES:
        for threads in (1, 2):
            case = f"{name} at {size_px} px, {threads} thread{'s'[: threads - 1]}, ms a photo"
            figures[f"forward, folded, {case}"] = forward_ms(name, size_px, threads)
            figures[f"forward and backward, {case}"] = training_ms(name, size_px, threads)
    tell(figures)


if __name__ == "__main__":
    main()
