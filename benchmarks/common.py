"""Inputs and output that benchmarks share: photos, crops, and the last line with the figures."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotator.photos.crops import Crops, crop_photo
from annotator.photos.decode import decode_photo, read_photo
from annotator.photos.errors import PhotoError
from annotator.sources import FolderSource
from trainer.evaluation.machine import machine

if (
    TYPE_CHECKING
):  # benchmarks that measure a driver's memory import this module, and the driver needs no torch
    import torch

__all__ = ["machine", "photo_folder", "prepared", "print_figures", "shown"]


def photo_folder(given: str | None, count: int) -> Path:
    """Return the given folder, or a new one with `count` synthetic photos."""
    if given:
        return Path(given)
    from trainer.synth import write_photos

    folder = Path(tempfile.mkdtemp(prefix="amvur-bench-"))
    write_photos(folder, count, seed=0, size_px=128)
    return folder / "images"


def prepared(photos: Path, crop_px: int, margin: float = 1.0) -> torch.Tensor:
    """Return crops of all readable photos as network input (n, 3, crop_px, crop_px), `margin` times as wide."""
    from annotator.model.network import images_of

    cut = []
    for entry in FolderSource(str(photos)):
        try:
            photo = decode_photo(read_photo(entry.path), min_side_px=math.ceil(crop_px / margin))
        except PhotoError:
            continue
        cut.append(crop_photo(photo.pixels, photo.width, photo.height, crop_px, margin=margin))
    return images_of(Crops.stack(cut).pixels)


def shown(value: float) -> str:
    """Format a figure for people."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def print_figures(figures: Mapping[str, float], **more: Any) -> None:
    """Print the figures, then one line of JSON with figures and details, which `all.py` reads.

    Args:
        figures: values by name; names contain the unit.
        more: details that go into the JSON alone.
    """
    for name, value in figures.items():
        print(f"{name}: {shown(value)}")
    print(json.dumps({"figures": figures, **more}))
