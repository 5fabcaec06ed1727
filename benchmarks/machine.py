"""What a benchmark says of the machine it ran on, and the photos it runs on."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotator.photos.crops import Crops, crop_photo
from annotator.photos.decode import PhotoError, decode_photo, read_photo
from annotator.sources import FolderSource

if TYPE_CHECKING:  # a driver's memory is measured beside this, and it does without torch
    import torch


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


def prepared(photos: Path, crop_px: int) -> torch.Tensor:
    """The crops of all readable photos as the network takes them (n, 3, crop_px, crop_px)."""
    import torch

    cut = []
    for entry in FolderSource(str(photos)):
        try:
            photo = decode_photo(read_photo(entry.path), min_side_px=crop_px)
        except PhotoError:
            continue
        cut.append(crop_photo(photo.pixels, photo.width, photo.height, crop_px))
    pixels = torch.from_numpy(Crops.stack(cut).pixels)
    return pixels.permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)


def shown(value: float) -> str:
    """A figure for people."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def tell(figures: Mapping[str, float], **more: Any) -> None:
    """A benchmark's last line, which `all.py` reads: what it found, named with its unit, and whatever else it has."""
    for name, value in figures.items():
        print(f"{name}: {shown(value)}")
    print(json.dumps({"figures": figures, **more}))
