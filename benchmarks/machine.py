"""What a benchmark says of the machine it ran on, and the photos it runs on."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path


def machine(device: str = "cpu") -> str:
    """One line: processor, cores, load, Python and torch; a GPU first."""
    import torch

    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if device.startswith("cuda"):
        versions += f", CUDA {torch.version.cuda}"
        model = f"{torch.cuda.get_device_name(device)}; {model}"
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before, {versions}"


def photo_folder(given: str | None, count: int) -> Path:
    """The folder a benchmark was given, or `count` synthetic photos drawn for it."""
    if given:
        return Path(given)
    from trainer.synth import write_photos

    folder = Path(tempfile.mkdtemp(prefix="amvur-bench-"))
    write_photos(folder, count, seed=0, size_px=128)
    return folder / "images"
