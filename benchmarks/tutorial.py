"""docs/tutorial.md as a script: `python benchmarks/tutorial.py OUT --photos PHOTOS --model MODEL`.

PHOTOS holds the folders `sign-digits` and `hand-scenes`, MODEL is MediaPipe's hand_landmarker.task. Writes the two
lists that the page takes for given, then runs its commands one by one in OUT, each as it stands; started again, it
goes on with the first that has not ended. At the end it says what each step was worth, and keeps it in
OUT/numbers.json; OUT/steps.jpg shows the same hands by each network.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from machine import machine
from PIL import Image
from shipped import ASIDE_SCENES, LAST_DIGITS, photo_number

import annotator
from annotator.report.tiles import contact_sheet, hand_tiles

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"

#: Networks in the picture, first to last, and its hands: every so-many-th of those kept aside.
SHOWN, EVERY, TILE_PX = ("drawn", "weakly", "again"), 53, 150

#: What each hand kept aside is judged by, and its unit: percent of the crop's side, millimetres.
ERRORS = {"joints2d_error": 100.0, "guess_pa_mpjpe_mm": 1.0}

#: What has ended, a command a line with its seconds.
DONE = "_done.jsonl"


def commands() -> list[str]:
    """The page's, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def write_lists(photos: Path, out: Path, every: int = 1) -> None:
    """OUT/photos.txt, and OUT/aside.txt with other people and other places: each `every`-th photo of both."""
    scenes = sorted((photos / "hand-scenes" / "images").glob("*.jpg"))
    digits = sorted((photos / "sign-digits" / "images").glob("*/*.JPG"), key=lambda p: photo_number(p.name))
    # Ten in a row, 0 to 9, are one person's.
    last = max(n for n, path in enumerate(digits[: -LAST_DIGITS + 1]) if path.parent.name == "0")
    aside = [*digits[last:], *(path for path in scenes if ASIDE_SCENES.match(path.name))]
    others = [*digits[:last], *(path for path in scenes if not ASIDE_SCENES.match(path.name))]
    for name, chosen in (("photos", others), ("aside", aside)):
        (out / f"{name}.txt").write_text("".join(f"{path.absolute()}\n" for path in chosen[::every]))


def run_page(out: Path) -> None:
    """Every command that has not ended yet."""
    done = {json.loads(line)["command"] for line in _lines(out / DONE)}
    environment_bin = Path(sys.executable).parent
    for command in commands():
        if command in done:
            continue
        print(f"$ {command}", flush=True)
        program, _, rest = command.partition(" ")
        began = time.monotonic()
        subprocess.run(f"{environment_bin / program} {rest}", shell=True, cwd=out, check=True)
        seconds = round(time.monotonic() - began, 1)
        with (out / DONE).open("a") as file:
            file.write(json.dumps({"command": command, "seconds": seconds}) + "\n")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def off_the_detector(labels: Path, found: Path) -> tuple[int, float]:
    """Hands, and how far labels' 2D joints lie from the detector's, as a share of the crop's side: their mean."""
    of_detector = {key: joints for key, joints, _ in _joints(found)}
    off = [
        np.linalg.norm(joints - of_detector[key], axis=1).mean() / side_px
        for key, joints, side_px in _joints(labels)
    ]
    return len(off), float(np.mean(off))


def _joints(labels: Path) -> Iterator[tuple[tuple[str, int], np.ndarray, float]]:
    columns = ["image_id", "hand_index", "status", "joints2d_px", "crop_xyxy"]
    for path in sorted((labels / "data").glob("*.parquet")):
        for row in pq.read_table(path, columns=columns).to_pylist():
            if row["status"] == "ok":
                left, _, right, _ = row["crop_xyxy"] or (0.0, 0.0, 1.0, 1.0)
                yield (row["image_id"], row["hand_index"]), np.array(row["joints2d_px"]), right - left


def numbers(out: Path) -> dict[str, Any]:
    """What each network reaches on the hands kept aside, and what filtering left."""
    found: dict[str, Any] = {"machine": machine(), "networks": {}, "labels": {}}
    for folder in sorted((out / "results").iterdir(), key=lambda path: path.stat().st_mtime):
        summary = json.loads((folder / "metrics.json").read_text())
        found["networks"][folder.name] = {
            "hands": summary["joints2d"]["count"],
            "joints2d_percent": 100 * summary["joints2d"]["error_share_of_crop"],
            "guess3d_mm": summary["guess3d"]["pa_mpjpe_mm"],
            "length_mm": summary["size"]["hand_length_mm"],
            # Of the half that it is surest of, over that of all.
            "surest_half_over_all": _surest_half(summary["uncertainty"]["guess3d"]),
            "less_than_weakly": {name: _paired(out / "results" / "weakly", folder, name) for name in ERRORS},
        }
    for name in ("labels", "best"):
        hands, off = off_the_detector(out / name, out / "found")
        found["labels"][name] = {"hands": hands, "joints2d_percent": 100 * off}
    found["seconds"] = {line["command"]: line["seconds"] for line in map(json.loads, _lines(out / DONE))}
    return found


def _paired(one: Path, other: Path, name: str) -> list[float]:
    """How much less each hand's error is by the other: the mean, and 95 % of what other such hands would have given."""
    errors = [np.array(pq.read_table(folder / "photos.parquet")[name]) for folder in (one, other)]
    less = (errors[0] - errors[1]) * ERRORS[name]
    drawn = np.random.default_rng(0).integers(len(less), size=(4000, len(less)))
    return [float(less.mean()), *np.quantile(less[drawn].mean(1), [0.025, 0.975]).tolist()]


def _surest_half(judged: dict[str, Any]) -> float | None:
    best = judged["error_of_best"]["50%"]
    return None if best is None else best / judged["mean_error"]


def picture(out: Path) -> Image.Image:
    """A row a hand: the photo, and each network's mesh over it."""
    hands = [
        row
        for path in sorted((out / "found-aside" / "data").glob("*.parquet"))
        for row in pq.read_table(path, columns=["image_uri", "box_xyxy", "status"]).to_pylist()
        if row["status"] == "ok"
    ][::EVERY]
    rows: list[list[Any]] = [[] for _ in hands]
    for name in SHOWN:
        predictor = annotator.load(str(out / name / "model.safetensors"))
        labels = predictor.predict(
            [row["image_uri"] for row in hands], boxes_xyxy=[row["box_xyxy"] for row in hands]
        )
        for tiles, row, label in zip(rows, hands, labels, strict=True):
            label |= {"image_uri": row["image_uri"], "frame_index": None}
            drawn = hand_tiles(label, predictor.checkpoint.hand.faces, TILE_PX, (10.0, 40.0))
            tiles += [drawn["photo"]] * (not tiles) + [drawn["overlay"]]
    half = len(rows) // 2
    return contact_sheet([a + b for a, b in zip(rows[:half], rows[half : 2 * half], strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="MediaPipe's hand_landmarker.task")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    write_lists(arguments.photos, out)
    shutil.copy(arguments.model, out / "hand_landmarker.task")
    run_page(out)
    found = numbers(out)
    (out / "numbers.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    torch.set_num_threads(1)
    picture(out).save(out / "steps.jpg", quality=88)


if __name__ == "__main__":
    main()
