"""Distil MediaPipe's landmark network to smaller crops.

    python tools/landmarker.py OUT --photos PHOTOS --model hand_landmarker.task

PHOTOS holds folders of photos. The script detects hands, cuts an upright crop per hand, draws hands, and distils a
small network from MediaPipe's on these crops (`trainer/distillation/`). A stopped run resumes. The result,
OUT/landmarker.safetensors, is a `Landmarker` in half precision. `--start` continues from an earlier one or from a
checkpoint such as `default`. Photos of tools/held_out.py are for evaluation.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import safetensors.torch
import torch
import torch.nn.functional as F
from held_out import COLLECTIONS, is_held_out
from torch import Tensor

from annotator.commands.detect import detect
from annotator.coordinates import CropFrame, upright_square
from annotator.hand.open_hand import open_hand
from annotator.model.checkpoint import load_checkpoint
from annotator.model.landmarker.distilled_file import (
    distilled_landmarker_bytes,
    is_distilled_landmarker,
    load_distilled_landmarker,
)
from annotator.model.landmarker.network import Landmarker
from annotator.model.landmarker.released_file import read_released_landmarker
from annotator.photos.cut import OUTSIDE, cut, resample
from annotator.photos.decode import Photo
from annotator.sources.read import photo_at
from annotator.storage.files import write_atomic
from trainer.augment import move
from trainer.distillation.config import DistilConfig
from trainer.distillation.distil import MODEL_FILE, distil
from trainer.distillation.examples import (
    TEACHER_PX,
    LandmarkExamples,
    drawn_examples,
    shrunk,
    taught_examples,
    view,
)
from trainer.distillation.read_outs import fit_presence, fit_side
from trainer.keyed_random import keys
from trainer.synth import SyntheticHands

#: Crops are this many times as wide as tight ones, for views to rotate and shift; side of a crop.
MARGIN, CROP_PX = 1.5, 288

#: Side of a tight crop, in sides of the landmarks' upright box.
PADDING = 1.35

#: Side of the square that is cut, over that of a rotated square inside.
REACH = 1.42

#: Seed and number of synthetic hands for training, and number after them for evaluation.
SEED, DRAWN, DRAWN_HELD_OUT = 7, 4000, 256

#: Crops for the statistics of batch norms; views for the evaluation.
MEASURED, EVALUATED = 96, 256


def upright_crop(
    photo: Photo, joints_px: np.ndarray, is_right: bool, padding: float, side_px: int
) -> tuple[Tensor, Tensor]:
    """Return the upright crop of a hand (S, S, 4), RGB and 255 inside the photo, and its joints (21, 2) in the crop.

    The crop is `padding` times as wide as the box of the joints (21, 2), photo pixels. Left hands are mirrored.
    """
    square = upright_square(joints_px, padding)
    frame = CropFrame(np.asarray(square.centre_px, np.float64), square.half_side_px, np.bool_(False))
    # A rotated square fits into one sqrt(2) times as large.
    reach = frame._replace(half_side_px=frame.half_side_px * REACH)
    black, white = (np.full_like(photo.pixels, level) for level in (0, 255))
    shown, outside, inside = (
        cut(pixels, reach, int(side_px * REACH), photo.width).astype(np.float32)
        for pixels in (photo.pixels, black, white)
    )
    layers = torch.from_numpy(np.dstack([shown, (inside - outside)[..., :1]])).permute(2, 0, 1)[None] / 255
    rotation, mirrored = torch.tensor([float(square.rotation_rad)]), torch.tensor([not is_right])
    image = resample(
        layers, torch.zeros(1, 2), torch.tensor([1 / REACH]), rotation, mirrored, side_px, (*OUTSIDE, 0)
    )
    rotated = frame._replace(mirrored=np.bool_(not is_right), rotation_rad=float(square.rotation_rad))
    joints2d = torch.from_numpy(rotated.crop_from_photo(joints_px)).float()
    return (image[0].permute(1, 2, 0) * 255).round().byte(), joints2d


def upright_crops(found: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield image id and upright crop (CROP_PX, CROP_PX, 3) uint8 per detected hand; left hands are mirrored."""
    for path in sorted((found / "data").glob("*.parquet")):
        for row in pq.read_table(path, filters=[("status", "=", "ok")]).to_pylist():
            photo = photo_at(row["image_uri"], row["frame_index"])
            joints_px = np.array(row["joints2d_px"])
            crop, _ = upright_crop(photo, joints_px, row["is_right"], PADDING * MARGIN, CROP_PX)
            yield row["image_id"], crop[..., :3]


def crops_of(out: Path, photos: Path, model: str) -> tuple[Tensor, Tensor]:
    """Return training and held-out crops, each (N, CROP_PX, CROP_PX, 3); OUT caches them."""
    kept = out / "crops.safetensors"
    if not kept.is_file():
        parts: dict[str, list[Tensor]] = {"train": [], "aside": []}
        for name in COLLECTIONS:
            found = out / "found" / name
            detect(str(photos / name / "images"), str(found), model)
            for image_id, crop in upright_crops(found):
                parts["aside" if is_held_out(name, image_id) else "train"].append(crop)
        stacked = {name: torch.stack(crops) for name, crops in parts.items()}
        write_atomic(str(kept), safetensors.torch.save(stacked))
    loaded = safetensors.torch.load_file(kept)
    return loaded["train"], loaded["aside"]


def drawn_crops(out: Path) -> tuple[LandmarkExamples, LandmarkExamples]:
    """Return upright crops of synthetic hands for training and for evaluation; OUT caches them."""
    kept = out / "drawn.safetensors"
    if not kept.is_file():
        hands = SyntheticHands(open_hand(), CROP_PX, seed=SEED)
        parts = [
            _drawn_upright(hands, torch.arange(first, first + 50))
            for first in range(0, DRAWN + DRAWN_HELD_OUT, 50)
        ]
        stacked = dict(zip(("image", "landmarks"), map(torch.cat, zip(*parts, strict=True)), strict=True))
        write_atomic(str(kept), safetensors.torch.save(stacked))
    loaded = safetensors.torch.load_file(kept)
    drawn = drawn_examples(loaded["image"], loaded["landmarks"])
    return drawn.rows(slice(DRAWN)), drawn.rows(slice(DRAWN, None))


def _drawn_upright(hands: SyntheticHands, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Draw hands, cut each upright and MARGIN times as wide as its landmarks: crops and true landmarks."""
    batch = hands.batch(numbers)
    square = upright_square(batch.joints2d.numpy(), PADDING * MARGIN)
    centre, half_side, rotation = (torch.from_numpy(x).float() for x in square)
    images, batch = move(batch.image.float() / 255, batch, CROP_PX, rotation, half_side, centre)
    joints = batch.joints3d_mm
    # Crop half-sides per millimetre: the least-squares scale from the joints' x and y to their 2D positions.
    flat, seen = (xy - xy.mean(1, keepdim=True) for xy in (joints[..., :2], batch.joints2d))
    scale = (flat * seen).sum((1, 2)) / flat.square().sum((1, 2))
    depth = joints[..., 2:] * scale[:, None, None]
    return (images.permute(0, 2, 3, 1) * 255).round().byte(), torch.cat([batch.joints2d, depth], 2)


@torch.no_grad()
def evaluate(network: Landmarker, crops: LandmarkExamples, crop_px: int, config: DistilConfig) -> str:
    """Describe the distance between a network's landmarks and the targets on views that show a hand."""
    views, target = view(crops, keys(2, torch.arange(len(crops.image))), MARGIN, config)
    off = 50 * (network.eval()(shrunk(views, crop_px)).image - target.image)[target.presence > 0]
    across, along = off[..., :2].norm(dim=-1).mean(1), off[..., 2].abs().mean(1)
    return f"{across.mean():.2f} (median {across.median():.2f}), depth {along.mean():.2f} % of the crop"


def distil_landmarker(
    out: Path, photos: Path, model: str, config: DistilConfig, start: str | None = None
) -> Path:
    """Detect, cut, draw, distil from `start` if given, evaluate, and return the path of the network."""
    train, aside = crops_of(out, photos, model)
    drawn, drawn_aside = drawn_crops(out)
    edge = round(CROP_PX * (1 - 1 / MARGIN) / 2)
    measured = train[:: len(train) // MEASURED, edge:-edge, edge:-edge].permute(0, 3, 1, 2) / 255
    teacher = read_released_landmarker(
        model, F.interpolate(measured, size=TEACHER_PX, mode="bilinear", antialias=True)
    )
    student = (
        load_start(start) if start else read_released_landmarker(model, shrunk(measured, config.crop_px))
    )
    print(f"{len(train)} crops, {len(aside)} held out, {len(drawn.image)} drawn", flush=True)
    evaluation_crops = {
        "photos": taught_examples(teacher, aside[:: max(len(aside) // EVALUATED, 1)], MARGIN),
        "drawn hands": drawn_aside,
    }

    def describe(network: Landmarker, crop_px: int = config.crop_px) -> str:
        return "; ".join(
            f"{name} {evaluate(network, crops, crop_px, config)}" for name, crops in evaluation_crops.items()
        )

    print(f"teacher: {describe(teacher, TEACHER_PX)}\nbefore: {describe(student)}", flush=True)

    def show(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step} of {config.steps}, loss {loss:.3f}", flush=True)

    crops = taught_examples(teacher, train, MARGIN).joined(drawn)
    mean = distil(student, crops, MARGIN, out / ("run-8bit" if config.eight_bit else "run"), config, show)
    side, presence = (fit(mean, crops, MARGIN, config) for fit in (fit_side, fit_presence))
    print(f"after: {describe(mean)}; read-outs on trained hands: side {side:.3f}, presence {presence:.3f}")
    path = out / MODEL_FILE
    write_atomic(str(path), distilled_landmarker_bytes(mean, config.crop_px))
    return path


def load_start(place: str) -> Landmarker:
    """Return the landmark network of an earlier distillation, or of a checkpoint such as `default`."""
    if is_distilled_landmarker(place):
        return load_distilled_landmarker(place)
    network = load_checkpoint(place).network.hand_network
    landmarker = Landmarker()
    for name, part in landmarker.named_children():
        part.load_state_dict(getattr(network, name).state_dict())
    return landmarker


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", required=True, help="MediaPipe's hand_landmarker.task")
    parser.add_argument("--start", help="an earlier distillation, or a checkpoint such as 'default'")
    parser.add_argument("--crop-px", type=int, default=160)
    parser.add_argument("--steps", type=int, default=DistilConfig.steps)
    parser.add_argument("--learning-rate", type=float, default=DistilConfig.learning_rate)
    parser.add_argument("--eight-bit", action="store_true", help="keep weights on a grid of eight bits")
    arguments = parser.parse_args()
    config = DistilConfig(
        crop_px=arguments.crop_px,
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        eight_bit=arguments.eight_bit,
    )
    distil_landmarker(arguments.out, arguments.photos, arguments.model, config, arguments.start)


if __name__ == "__main__":
    main()
