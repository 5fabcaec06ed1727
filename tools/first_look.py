"""Train the first of two looks: `python tools/first_look.py OUT --photos PHOTOS --model MODEL --start default`.

PHOTOS holds the folders of tools/shipped_weights.py; MODEL is MediaPipe's hand_landmarker.task. The script detects
hands, cuts a wide crop per hand and squares without a hand, draws hands, and trains a small network on these crops
(`trainer/distillation/first_look.py`). `--start` takes a checkpoint of a first look, or of two looks, for all weights;
for the backbone alone, a network that tools/landmarker.py distilled, or any other checkpoint. A stopped run resumes.
OUT/first-look.safetensors is a checkpoint of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import safetensors.torch
import torch
from held_out import COLLECTIONS, is_held_out
from landmarker import PADDING, load_start, upright_crop
from torch import Tensor

from annotator.commands.detect import detect
from annotator.config import NetworkConfig, read_config
from annotator.coordinates import CropFrame
from annotator.hand.model import HandModel
from annotator.hand.open_hand import open_hand
from annotator.model.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint, save_checkpoint
from annotator.model.landmarker.distilled_file import is_distilled_landmarker
from annotator.model.network import Network
from annotator.model.two_looks import first_look_config
from annotator.photos.cut import cut
from annotator.sources.read import photo_at
from trainer.distillation.config import FirstLookConfig
from trainer.distillation.first_look import (
    EMPTY_SHARE,
    WideExamples,
    first_look_loss,
    teach_first_look,
    views_of_step,
)
from trainer.state import first_look_of
from trainer.synth import SyntheticHands

#: The collection whose photos show more than hands.
ROOMS = "hand-scenes"

#: Crops are this many times as wide as tight ones; side of a crop.
MARGIN, CROP_PX = 2.4, 240

#: Squares without a hand per photo, their sides, and attempts at one that touches no hand.
EMPTY, EMPTY_SIDES_PX, ATTEMPTS = 8, (60, 260), 80

#: Seed and number of synthetic hands for training, and number after them for evaluation.
SEED, DRAWN, DRAWN_HELD_OUT = 11, 10_000, 256

#: The checkpoint.
FILE = "first-look.safetensors"


def crops_of(out: Path, photos: Path, model: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return crops for training and held-out ones: `image`, `joints2d` and the number of their `kind`; OUT caches them.

    Kinds are the collections, then squares without a hand, then synthetic hands.
    """
    for part in ("train", "aside"):
        if not (out / f"{part}.safetensors").is_file():
            _write_crops(out, photos, model)
    train, aside = (safetensors.torch.load_file(out / f"{part}.safetensors") for part in ("train", "aside"))
    return train, aside


def _write_crops(out: Path, photos: Path, model: str) -> None:
    parts: dict[str, list[tuple[Tensor, Tensor, int]]] = {"train": [], "aside": []}
    for kind, name in enumerate(COLLECTIONS):
        found = out / "found" / name
        detect(str(photos / name / "images"), str(found), model)
        rows = [
            row
            for path in sorted((found / "data").glob("*.parquet"))
            for row in pq.read_table(path).to_pylist()
        ]
        chance = np.random.default_rng(kind)
        for (uri, image_id), hands in groupby(rows, itemgetter("image_uri", "image_id")):
            part = parts["aside" if is_held_out(name, image_id) else "train"]
            of_photo = list(hands)
            part += [(*crop, kind) for crop in _hand_crops(uri, of_photo)]
            if name == ROOMS:
                part += [(*crop, len(COLLECTIONS)) for crop in _empty_crops(uri, of_photo, chance)]
    drawn = SyntheticHands(open_hand(), CROP_PX, seed=SEED)
    for first in range(0, DRAWN + DRAWN_HELD_OUT, 32):
        batch = drawn.batch(torch.arange(first, first + 32))
        inside = torch.full_like(batch.image[:, :1], 255)
        images = torch.cat([batch.image, inside], 1).permute(0, 2, 3, 1)
        part = parts["train" if first < DRAWN else "aside"]
        part += [(*crop, len(COLLECTIONS) + 1) for crop in zip(images, batch.joints2d, strict=True)]
    while parts:  # a part is several gigabytes: no copy stays longer than needed
        name, crops = parts.popitem()
        tensors = {
            "joints2d": torch.stack([joints2d for _, joints2d, _ in crops]).float(),
            "kind": torch.tensor([kind for _, _, kind in crops]),
            "image": torch.stack([image for image, _, _ in crops]),
        }
        del crops
        unfinished = out / f"{name}.unfinished"
        try:
            safetensors.torch.save_file(tensors, unfinished)
            unfinished.replace(out / f"{name}.safetensors")
        finally:
            unfinished.unlink(missing_ok=True)


def _hand_crops(uri: str, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a crop (CROP_PX, CROP_PX, 4) and its 2D joints (21, 2) per detected hand; left hands are mirrored."""
    photo = photo_at(uri, None)
    for row in rows:
        if row["status"] == "ok":
            yield upright_crop(
                photo, np.array(row["joints2d_px"]), row["is_right"], PADDING * MARGIN, CROP_PX
            )


def _empty_crops(
    uri: str, rows: Sequence[dict[str, Any]], chance: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield crops of squares that touch no hand's box, with the corners of a square to show."""
    photo = photo_at(uri, None)
    boxes = [row["box_xyxy"] for row in rows if row["box_xyxy"] is not None]
    found = 0
    for _ in range(ATTEMPTS):
        half_px = chance.uniform(*EMPTY_SIDES_PX) / 2
        x, y = (chance.uniform(half_px, side - half_px) for side in (photo.width, photo.height))
        if found == EMPTY or any(
            x - half_px < x1 and x + half_px > x0 and y - half_px < y1 and y + half_px > y0
            for x0, y0, x1, y1 in boxes
        ):
            continue
        found += 1
        inner_px = round(CROP_PX * EMPTY_SHARE)
        frame = CropFrame(np.array([x, y]), np.float64(half_px), np.bool_(False))
        pixels = cut(photo.pixels, frame, inner_px, photo.width)
        image = np.zeros((CROP_PX, CROP_PX, 4), np.uint8)
        edge = (CROP_PX - inner_px) // 2
        image[edge : edge + inner_px, edge : edge + inner_px] = np.dstack(
            [pixels, np.full_like(pixels[..., :1], 255)]
        )
        corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]).repeat(6, 1)[:21]
        yield torch.from_numpy(image), corners * EMPTY_SHARE / 2


def examples(crops: dict[str, Tensor], config: FirstLookConfig) -> WideExamples:
    """Return the crops as examples with the configuration's shares."""
    kind = crops["kind"]
    shares = torch.tensor([*config.photos, config.empty, config.drawn])
    chance = (shares / kind.bincount(minlength=len(shares)).clamp_min(1))[kind]
    return WideExamples(crops["image"], crops["joints2d"], kind != len(COLLECTIONS), chance)


@torch.no_grad()
def evaluated(network: Network, aside: WideExamples, config: FirstLookConfig) -> str:
    """Describe the network on held-out views."""
    crop_px = network.config.crop_px
    off, right, hand, empty, loss = [], [], [], [], []
    for step in range(8):
        views = views_of_step(aside, step, crop_px, config)
        features = network.extract(views.image)
        assert features.joints2d is not None
        is_hand = network.is_hand(features) > 0.5
        off.append(50 * (features.joints2d - views.joints2d).norm(dim=-1).mean(1)[views.is_hand])
        right.append(((network.is_right(features) > 0.5) == views.is_right)[views.is_hand])
        hand.append(is_hand[views.is_hand])
        empty.append(~is_hand[~views.is_hand])
        loss.append(float(first_look_loss(network, features, views)))
    joints = torch.cat(off)
    shares = ", ".join(
        f"{name} {torch.cat(values).float().mean():.3f}"
        for name, values in (("side", right), ("hands", hand), ("squares without a hand", empty))
    )
    errors = f"joints off by {joints.mean():.1f} % of the crop (median {joints.median():.1f})"
    return f"loss {np.mean(loss):.2f}; {errors}; {shares}"


def start_first_look(start: str, hand: HandModel, seed: int) -> Network:
    """Return the network before its first step, with the layers that a first look leaves out: its checkpoint loads."""
    config = read_config(NetworkConfig, "network", "first-look")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(config, hand)
    earlier = (
        None if is_distilled_landmarker(start) else first_look_of(start, "open") or load_checkpoint(start)
    )
    if earlier is not None and first_look_config(earlier.info.network) == first_look_config(config):
        network.load_state_dict(earlier.network.state_dict(), strict=False)
    else:
        network.backbone.load_state_dict(load_start(start).backbone.state_dict())
    return network


def first_look(out: Path, photos: Path, model: str, start: str, config: FirstLookConfig) -> Path:
    """Cut crops, train a first look, evaluate it, and return the path of its checkpoint."""
    train, aside = crops_of(out, photos, model)
    hand = open_hand()
    network = start_first_look(start, hand, config.seed)

    def save(mean: Network) -> None:
        info = CheckpointInfo(network.config, hand.id)
        save_checkpoint(Checkpoint(mean, hand, info, ""), out / FILE)

    def show(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"first look: step {step} of {config.steps}, loss {loss:.3f}", flush=True)

    mean = teach_first_look(network, examples(train, config), out, config, save, show)
    print(f"held out: {evaluated(mean, examples(aside, config), config)}", flush=True)
    return out / FILE


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", required=True, help="MediaPipe's hand_landmarker.task")
    parser.add_argument("--start", default="default", help="a distilled landmark network, or a checkpoint")
    parser.add_argument("--steps", type=int, default=FirstLookConfig.steps)
    parser.add_argument("--learning-rate", type=float, default=FirstLookConfig.learning_rate)
    arguments = parser.parse_args()
    config = FirstLookConfig(steps=arguments.steps, learning_rate=arguments.learning_rate)
    first_look(arguments.out, arguments.photos, arguments.model, arguments.start, config)


if __name__ == "__main__":
    main()
