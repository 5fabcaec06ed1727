"""Make the pictures of the model card and measure speed: `python tools/model_card.py PHOTOS`.

PHOTOS holds the folders `hand-photos` and `sign-digits`, crops in which no face can be recognised. Held-out hands are
sorted by their distance from MediaPipe's 2D joints. Twenty at even steps go to docs/images/held-out.jpg, the eight
worst to worst.jpg, and eight of the better half, with textures, to real.jpg. --eye FOLDER also writes sixty random ones
there, for inspection by eye.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

import annotator
from annotator.photos.crops import BOX_PADDING, Crops, box_around_joints, crop_photo
from annotator.photos.decode import decode_photo, read_photo
from annotator.predictor import Predictor
from annotator.report.tiles import Picture, contact_sheet, hand_tiles
from trainer.evaluation.machine import machine
from trainer.run_log import draw_bones

ROOT = Path(__file__).parents[1]
TILE_PX, STD_RANGE_MM = 150, (8.0, 40.0)
#: Collections in the pictures.
COLLECTIONS = ("hand-photos", "sign-digits")
#: Random hands for inspection by eye, and their seed.
EYE, EYE_SEED = 60, 60


def held_out_rows(photos: Path) -> list[dict[str, Any]]:
    """Read the landmarks of held-out photos, with each photo's path and the box around them."""
    rows = pq.read_table(ROOT / "tests/data/held_out_landmarks.parquet").to_pylist()
    rows = [row for row in rows if row["collection"] in COLLECTIONS]
    for row in rows:
        row["path"] = str(photos / row["collection"] / "images" / row["image_id"])
        row["box_xyxy"] = box_around_joints(np.array(row["joints2d_px"])).tolist()
    return rows


def labels_of(predictor: Predictor, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Label the rows' boxes and add `off`: the mean distance from the detector's 2D joints over the crop's side."""
    labels = []
    predicted = predictor.predict([row["path"] for row in rows], boxes_xyxy=[row["box_xyxy"] for row in rows])
    for row, label in zip(rows, predicted, strict=True):
        x0, _, x1, _ = label["crop_xyxy"]
        distances = np.linalg.norm(label["joints2d_px"] - np.array(row["joints2d_px"]), axis=1)
        added = {
            "image_uri": row["path"],
            "frame_index": None,
            "off": float(distances.mean() / (x1 - x0)),
            "row": row,
        }
        labels.append({**label, **added})
    return labels


def with_joints(label: dict[str, Any], tile: Picture) -> Picture:
    """Draw the detector's joints (white) and the label's (red) into the photo."""
    image = Image.fromarray(tile.copy())
    x0, y0, x1, y1 = label["crop_xyxy"]
    for joints, colour in (
        (label["row"]["joints2d_px"], (255, 255, 255)),
        (label["joints2d_px"], (230, 40, 30)),
    ):
        draw_bones(image, (np.array(joints) - [(x0 + x1) / 2, (y0 + y1) / 2]) / ((x1 - x0) / 2), colour)
    return np.asarray(image)


def sheet(labels: list[dict[str, Any]], faces: np.ndarray, columns: int) -> Image.Image:
    """Return four pictures per label: photo, mesh over it, both 2D joints, uncertainty."""
    tiles = []
    for label in labels:
        drawn = hand_tiles(label, faces, TILE_PX, STD_RANGE_MM)
        tiles.append(
            [drawn["photo"], drawn["overlay"], with_joints(label, drawn["photo"]), drawn["uncertainty"]]
        )
    rows = [list(chain(*tiles[i : i + columns])) for i in range(0, len(tiles), columns)]
    return contact_sheet(rows, gap_px=3)


def with_texture(labels: list[dict[str, Any]], faces: np.ndarray) -> Image.Image:
    """Return two labels per row: photo, mesh over it, uncertainty, texture."""
    tiles = [list(hand_tiles(label, faces, TILE_PX, STD_RANGE_MM).values()) for label in labels]
    return contact_sheet([tiles[i] + tiles[i + 1] for i in range(0, len(tiles), 2)], gap_px=3)


def photos_per_s(predictor: Predictor, rows: list[dict[str, Any]]) -> float:
    """Measure the predictor alone on crops of real photos; median of five runs."""
    checkpoint, cut = predictor.checkpoint, []
    for row in rows[:128]:
        photo = decode_photo(read_photo(row["path"]))
        cut.append(
            crop_photo(
                *(photo.pixels, photo.width, photo.height, checkpoint.cut_px, row["box_xyxy"]),
                margin=checkpoint.cut_margin,
            )
        )
    crops, times = Crops.stack(cut), []
    for _ in range(6):
        began = time.perf_counter()
        predictor.predict_crops(crops)
        times.append(time.perf_counter() - began)
    return len(crops) / statistics.median(times[1:])


def main() -> None:
    """Write the pictures and print the speed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images")
    parser.add_argument("--pictures-only", action="store_true")
    parser.add_argument("--eye", type=Path)
    arguments = parser.parse_args()
    predictor = annotator.load(arguments.checkpoint, device="cpu")
    rows = held_out_rows(arguments.photos)
    labels = sorted(labels_of(predictor, rows), key=lambda label: label["off"])
    faces = predictor.checkpoint.hand.faces
    chosen = [labels[i] for i in np.linspace(0, len(labels) - 1, 20).astype(int)]
    sheet(chosen, faces, 2).save(arguments.out / "held-out.jpg", quality=85)
    sheet(labels[-8:], faces, 2).save(arguments.out / "worst.jpg", quality=85)
    better = [labels[i] for i in np.linspace(0, len(labels) // 2, 8).astype(int)]
    with_texture(better, faces).save(arguments.out / "real.jpg", quality=85)
    if arguments.eye:
        arguments.eye.mkdir(parents=True, exist_ok=True)
        chosen_rows = np.random.default_rng(EYE_SEED).choice(len(labels), EYE, replace=False)
        for part in range(0, EYE, 15):
            some = sheet([labels[i] for i in chosen_rows[part : part + 15]], faces, 3)
            some.save(arguments.eye / f"eye-{part:02d}.png")
    if arguments.pictures_only:
        return
    off = {
        name: 100 * np.array([label["off"] for label in labels if label["row"]["collection"] == name])
        for name in COLLECTIONS
    }
    shown = ", ".join(f"{name} {np.mean(v):.2f} / {np.median(v):.2f}" for name, v in off.items())
    print(f"{machine()}, {torch.get_num_threads()} threads; crops {BOX_PADDING} times the box")
    print(f"{photos_per_s(predictor, rows):.0f} photos/s; 2D off, mean / median % of the crop: {shown}")


if __name__ == "__main__":
    main()
