"""Find the true aspect ratio of squashed photos, and restore it.

    python tools/aspect_ratio.py FOUND

FOUND is the output of `amvur detect` for hand-photos. The script scales the landmarks' width by several factors, fits
hands to them, and prints the mean cost of the fits. Where photos have their true aspect ratio, a factor near 1 fits
best. The photos of `phone-gestures` came as squares; their hands fit best at 3:4 (docs/model-card.md).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from annotator.fitting.hand_fit import HandFitter
from annotator.fitting.landmarks import Landmarks

#: Folders of squashed photos, and their true width over height.
SQUASHED = {"phone-gestures": 3 / 4}

#: Factors of the width to try; hands per folder.
FACTORS, HANDS = (0.5, 0.5625, 0.65, 0.75, 0.87, 1.0, 1.15, 1.33), 150


def with_true_aspect(images: Path, out: Path) -> Path:
    """Return a copy of a folder of photos in OUT, in which squashed photos have their true aspect ratio."""
    for path in sorted(images.rglob("*.*")):
        copy = out / path.relative_to(images)
        if copy.is_file() or not path.is_file():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shape = SQUASHED.get(path.parent.name)
        if shape is None:
            shutil.copyfile(path, copy)
            continue
        with Image.open(path) as photo:
            size = photo.width, round(photo.width / shape)
            part = copy.with_suffix(".part")
            photo.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(part, "JPEG", quality=95)
        part.replace(copy)
    return out


def costs(found: Path) -> dict[str, list[float]]:
    """Return the mean cost of fits at each factor, per folder of photos."""
    columns = ["image_id", "is_right", "joints2d_px", "landmark_depth_px"]
    rows = [
        row
        for path in sorted((found / "data").glob("*.parquet"))
        for row in pq.read_table(path, columns=columns, filters=[("status", "=", "ok")]).to_pylist()
    ]
    fitter = HandFitter()
    result = {}
    for folder in sorted({Path(row["image_id"]).parent.name for row in rows}):
        of_folder = [row for row in rows if Path(row["image_id"]).parent.name == folder]
        some = of_folder[:: max(1, len(of_folder) // HANDS)]
        joints, depth, right = (
            np.array([row[name] for row in some]) for name in (columns[2], columns[3], columns[1])
        )
        result[folder] = [
            float(fitter.costs(Landmarks(joints * (factor**0.5, factor**-0.5), depth, right)).mean())
            for factor in FACTORS
        ]
    return result


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("found", type=Path)
    print("width times  " + "  ".join(f"{factor:6.2f}" for factor in FACTORS))
    for folder, values in costs(parser.parse_args().found).items():
        print(f"{folder:16s} " + "  ".join(f"{value:6.1f}" for value in values), flush=True)


if __name__ == "__main__":
    main()
