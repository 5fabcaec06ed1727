"""Count the hands that the detector finds, by size and rotation in the photo, with `--search quick` and `thorough`.

    python benchmarks/detector.py [--scenes FOLDER] [--model hand_landmarker.task] [--count 60]

FOLDER holds images/ and boxes.csv; scenes and model default to those in ../shared. Each photo is pasted at 1, 1/2, 1/4
and 1/8 of a canvas: the photo itself, blurred. Rotations by 0, 90, 180 and 270 degrees are spread evenly over sizes. A
hand counts as found where boxes agree with an IoU of 0.5. A find is false where it meets no true box (IoU below 0.1).
Further pieces of the photos show no hand. Times are of all cores together.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from common import machine, print_figures
from numpy.typing import NDArray
from PIL import Image

from annotator.detection.detector import HandDetector, Search
from annotator.photos.crops import box_overlaps

SHARED = Path(__file__).parents[2] / "shared"
SIZES = (1, 2, 4, 8)
SEARCHES: tuple[Search, ...] = ("quick", "thorough")

#: Minimum side of a piece without a hand, pixels.
PIECE_PX = 200

Boxes = NDArray[np.float64]  # (n, 4) xyxy, pixels


@dataclass
class Tally:
    """The finds in some photos."""

    photos: int = 0
    hands: int = 0
    hits: int = 0
    false: int = 0
    seconds: list[float] = field(default_factory=list)

    def add(self, found: Boxes, true: Boxes, seconds: float) -> None:
        """Count one photo."""
        self.photos += 1
        self.hands += len(true)
        self.seconds.append(seconds)
        left = list(range(len(true)))
        for box in found:
            overlaps = box_overlaps(box, true)
            if left and overlaps[left].max() >= 0.5:
                left.pop(int(np.argmax(overlaps[left])))
                self.hits += 1
            elif (overlaps < 0.1).all():
                self.false += 1

    def cells(self) -> list[str]:
        """Return recall, false finds per photo, and the median and largest time."""
        recall = f"{self.hits / self.hands:.2f}" if self.hands else ""
        ms = 1000 * np.array(self.seconds)
        return [recall, f"{self.false / self.photos:.3f}", f"{np.median(ms):.0f}", f"{ms.max():.0f}"]


def read_boxes(scenes: Path) -> dict[str, Boxes]:
    """Return the true boxes of each photo, by its name."""
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    with (scenes / "boxes.csv").open() as file:
        for row in csv.DictReader(file):
            boxes[row["image"]].append([float(row[name]) for name in ("x1_px", "y1_px", "x2_px", "y2_px")])
    return {name: np.array(found) for name, found in sorted(boxes.items())}


def pasted(
    photo: Image.Image, boxes: Boxes, size: int, rng: np.random.Generator
) -> tuple[Image.Image, Boxes]:
    """Return the photo at 1/`size` of a canvas, and where its hands lie.

    At 1/8 the canvas has twice the photo's sides, so that hands have as many pixels as at 1/4.
    """
    if size == 1:
        return photo, boxes
    grow = 2 if size == 8 else 1
    width, height = grow * photo.width, grow * photo.height
    small = photo.reduce(size // grow)
    canvas = photo.resize((16, 12), Image.Resampling.BOX).resize((width, height), Image.Resampling.BICUBIC)
    corner = rng.integers(0, [width - small.width + 1, height - small.height + 1])
    canvas.paste(small, (int(corner[0]), int(corner[1])))
    return canvas, boxes * grow / size + np.tile(corner, 2)


def rotated(photo: Image.Image, boxes: Boxes, quarters: int) -> tuple[NDArray[np.uint8], Boxes]:
    """Return pixels and boxes, rotated counterclockwise."""
    pixels = np.asarray(photo)
    for _ in range(quarters):
        x1, y1, x2, y2 = boxes.T
        boxes = np.stack([y1, pixels.shape[1] - x2, y2, pixels.shape[1] - x1], 1)
        pixels = np.rot90(pixels)
    return np.ascontiguousarray(pixels), boxes


def without_hand(photo: Image.Image, boxes: Boxes) -> Image.Image | None:
    """Return the larger side part of the photo that no hand reaches, None where both are narrow."""
    left, right = boxes[:, 0].min() - 20, boxes[:, 2].max() + 20
    if max(left, photo.width - right) < PIECE_PX:
        return None
    edges = (0, left) if left > photo.width - right else (right, photo.width)
    return photo.crop((int(edges[0]), 0, int(edges[1]), photo.height))


def measure(scenes: Path, model: str, count: int) -> dict[str, dict[str, Tally]]:
    """Return the tallies of each search by row of the table."""
    detectors = {search: HandDetector(model, search=search) for search in SEARCHES}
    rows: dict[str, dict[str, Tally]] = defaultdict(lambda: {search: Tally() for search in SEARCHES})

    def look(names: list[str], pixels: NDArray[np.uint8], boxes: Boxes) -> None:
        for search, detector in detectors.items():
            began = time.process_time()
            hands = detector.detect(pixels)
            seconds = time.process_time() - began
            for name in names:
                rows[name][search].add(np.array([hand.box_xyxy for hand in hands]), boxes, seconds)

    photos = read_boxes(scenes)
    rng = np.random.default_rng(0)
    for number, name in enumerate(list(photos)[:: max(1, len(photos) // count)][:count]):
        with Image.open(scenes / "images" / name) as file:
            photo = file.convert("RGB")
        for order, size in enumerate(SIZES):
            quarters = (number + order) % 4
            canvas, boxes = pasted(photo, photos[name], size, rng)
            groups = [f"photo at 1/{size} of the canvas", f"rotated by {90 * quarters} degrees"]
            look(groups, *rotated(canvas, boxes, quarters))
        piece = without_hand(photo, photos[name])
        if piece is not None:
            look(["pieces without a hand"], np.asarray(piece), np.zeros((0, 4)))
    return rows


def main() -> None:
    """Print the table; one JSON line last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=Path, default=SHARED / "data" / "hand-scenes")
    parser.add_argument("--model", default=str(SHARED / "models" / "hand_landmarker.task"))
    parser.add_argument("--count", type=int, default=60)
    args = parser.parse_args()
    print(machine())
    if not (args.scenes / "boxes.csv").is_file() or not Path(args.model).is_file():
        print("left out: give --scenes (a folder with images/ and boxes.csv) and --model")
        print_figures({})
        return
    rows = measure(args.scenes, args.model, args.count)
    heads = [
        f"{search}: {what}"
        for search in SEARCHES
        for what in ("recall", "false finds per photo", "ms", "ms at most")
    ]
    print("| | photos | hands | " + " | ".join(heads) + " |\n" + "|---" * (3 + len(heads)) + "|")
    for name in sorted(rows, key=lambda name: (name[:6], len(name), name)):
        tallies = rows[name]
        cells = [cell for search in SEARCHES for cell in tallies[search].cells()]
        print(
            f"| {name} | {tallies['quick'].photos} | {tallies['quick'].hands} | " + " | ".join(cells) + " |"
        )
    print_figures(
        {
            f"recall, {name}, {search}": tally.hits / tally.hands
            for name, tallies in rows.items()
            for search, tally in tallies.items()
            if tally.hands
        }
    )


if __name__ == "__main__":
    main()
