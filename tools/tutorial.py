"""Run docs/tutorial.md as a script: `python tools/tutorial.py OUT --photos PHOTOS --model MODEL`.

PHOTOS holds the folders `sign-digits` and `hand-scenes`, MODEL is MediaPipe's hand_landmarker.task. The script writes
the two lists that the page assumes, then runs its commands unchanged in OUT, one by one. A stopped run resumes at the
first unfinished command. OUT/numbers.json has the gain per step; OUT/steps.jpg shows the same hands by each network.
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
from held_out import digit_number, is_held_out
from PIL import Image

import annotator
from annotator.report.tiles import contact_sheet, hand_tiles
from trainer.evaluation.machine import machine

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"

#: Networks in the picture, first to last; every Nth held-out hand; side of a tile.
SHOWN, EVERY, TILE_PX = ("drawn", "weakly", "again"), 53, 150

#: Every 53rd hand that is left out of the picture, because its photo shows a face.
FACES = (7, 8)

#: Errors per held-out hand, and the factor to their unit: percent of the crop's side, millimetres.
ERRORS = {"joints2d_error": 100.0, "guess_pa_mpjpe_mm": 1.0}

#: Finished commands, one per line with its seconds.
DONE = "_done.jsonl"


def commands() -> list[str]:
    """Return the commands of the page, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def write_lists(photos: Path, out: Path, every: int = 1) -> None:
    """Write OUT/photos.txt, and OUT/held-out.txt with other people and places: every Nth photo of both."""
    folders = {name: photos / name / "images" for name in ("sign-digits", "hand-scenes")}
    digits = sorted(folders["sign-digits"].glob("*/*.JPG"), key=lambda path: digit_number(path.name))
    scenes = sorted(folders["hand-scenes"].glob("*.jpg"))
    held_out: list[Path] = []
    others: list[Path] = []
    for name, paths in (("sign-digits", digits), ("hand-scenes", scenes)):
        for path in paths:
            image_id = path.relative_to(folders[name]).as_posix()
            (held_out if is_held_out(name, image_id) else others).append(path)
    for name, chosen in (("photos", others), ("held-out", held_out)):
        (out / f"{name}.txt").write_text("".join(f"{path.absolute()}\n" for path in chosen[::every]))


def run_page(out: Path) -> None:
    """Run every command that has not finished yet."""
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
    """Return the hand count, and the mean 2D distance of labels from the detector's joints over the crop's side."""
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
    """Return the errors of each network on the held-out hands, and the figures of the filtered labels."""
    found: dict[str, Any] = {"machine": machine(), "networks": {}, "labels": {}}
    for folder in sorted((out / "results").iterdir(), key=lambda path: path.stat().st_mtime):
        summary = json.loads((folder / "metrics.json").read_text())
        found["networks"][folder.name] = {
            "hands": summary["joints2d"]["count"],
            "joints2d_percent": 100 * summary["joints2d"]["error_share_of_crop"],
            "guess3d_mm": summary["guess3d"]["pa_mpjpe_mm"],
            "length_mm": summary["size"]["hand_length_mm"],
            # Error of the half with the smallest std, over the error of all.
            "surest_half_over_all": _best_half(summary["uncertainty"]["guess3d"]),
            "less_than_weakly": {name: _paired(out / "results" / "weakly", folder, name) for name in ERRORS},
        }
    for name in ("labels", "best"):
        hands, off = off_the_detector(out / name, out / "found")
        found["labels"][name] = {"hands": hands, "joints2d_percent": 100 * off}
    found["seconds"] = {line["command"]: line["seconds"] for line in map(json.loads, _lines(out / DONE))}
    return found


def _paired(one: Path, other: Path, name: str) -> list[float]:
    """Return the mean error reduction from `one` to `other`, and its 95 % bootstrap interval over hands."""
    errors = [np.array(pq.read_table(folder / "photos.parquet")[name]) for folder in (one, other)]
    less = (errors[0] - errors[1]) * ERRORS[name]
    drawn = np.random.default_rng(0).integers(len(less), size=(4000, len(less)))
    return [float(less.mean()), *np.quantile(less[drawn].mean(1), [0.025, 0.975]).tolist()]


def _best_half(figures: dict[str, Any]) -> float | None:
    best = figures["error_of_best"]["50%"]
    return None if best is None else best / figures["mean_error"]


def picture(out: Path) -> Image.Image:
    """Return a picture with one row per hand: the photo, and the mesh of each network over it."""
    hands = [
        row
        for path in sorted((out / "found-held-out" / "data").glob("*.parquet"))
        for row in pq.read_table(path, columns=["image_uri", "box_xyxy", "status"]).to_pylist()
        if row["status"] == "ok"
    ][::EVERY]
    hands = [row for number, row in enumerate(hands) if number not in FACES]
    rows: list[list[Any]] = [[] for _ in hands]
    for name in SHOWN:
        predictor = annotator.load(str(out / name / "model.safetensors"))
        labels = predictor.predict(
            [row["image_uri"] for row in hands], boxes_xyxy=[row["box_xyxy"] for row in hands]
        )
        for tiles, row, label in zip(rows, hands, labels, strict=True):
            shown = {**label, "image_uri": row["image_uri"], "frame_index": None}
            drawn = hand_tiles(shown, predictor.checkpoint.hand.faces, TILE_PX, (10.0, 40.0))
            tiles += [drawn["photo"]] * (not tiles) + [drawn["overlay"]]
    half = len(rows) // 2
    return contact_sheet([a + b for a, b in zip(rows[:half], rows[half : 2 * half], strict=True)])


def main() -> None:
    """Write the lists, run the page, and write figures and picture."""
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
