"""Write synthetic photos and their true labels to files."""

from __future__ import annotations

import io
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from annotator.coordinates import axes_of_ray, crop_from_camera, rotation_vectors
from annotator.errors import UserError
from annotator.hand import HandModel, load_hand
from annotator.labels.schema import (
    ROUNDING,
    SCHEMA_VERSION,
    encode_table,
    label_schema,
    labels_to_table,
    write_tables,
)
from annotator.storage.files import check_writable, is_local, names_in, whole_file, write_whole
from annotator.storage.room import NoRoomError, naming
from trainer.keyed import Draws, keys
from trainer.synth.hands import Photos, SyntheticHands

#: Photos per block; blocks are always complete, so that a photo does not depend on the count.
BLOCK = 16

#: Maximum drawing threads.
DRAWERS = 4

JPEG_QUALITY = 92

#: Label rows in memory: a row group of the truth.
LABELS_AT_ONCE = 512

# Random stream of a hand's side, see `hands.py`.
_SIDE = 99


def write_photos(out: Path, count: int, seed: int, size_px: int) -> None:
    """Write photos, masks and true labels to a folder.

    Files are out/images/000000.jpg ..., out/masks/000000.png ... (255 where the hand is visible) and out/truth.parquet
    (`annotator.labels.schema`). The same seed gives the same files; photo i does not depend on `count`. Files of an
    earlier run are overwritten.

    In the truth, `image_id` is the file name, `image_uri` its path relative to the table, and the crop is the whole
    photo. `box_xyxy` encloses the hand, focal length and principal point are true (`given`), `vertex_rgb` is unlit
    skin, and every std is null. Half of the photos are mirrored: left hands. Some are cut from a wide-angle photo:
    their principal point is not their centre.

    Raises:
        UserError: the folder can't be written, or holds other files.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative: give 0 or more")
    if not is_local(str(out)) or ":/" in str(out):
        raise UserError(
            f"'{out}' is a URL: write synthetic photos to a local folder, then convert them to the URL"
        )
    names = [f"{index:06d}.jpg" for index in range(count)]
    check_folder(out, set(names))
    check_writable(str(out))
    hand = load_hand("open")
    schema = label_schema(hand.vertex_count, {"amvur": truth_facts(hand, seed, size_px)})
    try:
        # An empty truth marks the folder as synthetic until all photos are written.
        write_whole(str(out / "truth.parquet"), encode_table(schema.empty_table()))
        (out / "images").mkdir(exist_ok=True)
        (out / "masks").mkdir(exist_ok=True)
        drawn = _photos(hand, count, seed, size_px)
        with whole_file(out / "truth.parquet") as file:
            write_tables(file, _written(out, names, drawn, size_px, schema), schema)
    except NoRoomError:
        raise
    except OSError as error:
        raise UserError(f"can't write to '{out}': {error.strerror or error}") from None


#: A photo (H, W, 3), its hand's mask (H, W), and the label columns of the hand.
_Drawn = tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, Any]]


def _written(
    out: Path, names: list[str], drawn: Iterator[_Drawn], size_px: int, schema: pa.Schema
) -> Iterator[pa.Table]:
    """Write photos and masks, and yield their labels in parts, so that memory does not grow with the count."""
    for first in range(0, len(names), LABELS_AT_ONCE):
        tables = []
        part = names[first : first + LABELS_AT_ONCE]
        for name, (photo, mask, columns) in zip(part, islice(drawn, len(part)), strict=True):
            data, mask_path = jpeg_bytes(photo), (out / "masks" / name).with_suffix(".png")
            with naming(out / "images" / name, len(data)):
                (out / "images" / name).write_bytes(data)
            with naming(mask_path):
                Image.fromarray(mask).save(mask_path)
            tables.append(_table(name, columns, size_px, schema))
        yield pa.concat_tables(tables).combine_chunks()


def _photos(hand: HandModel, count: int, seed: int, size_px: int) -> Iterator[_Drawn]:
    # Always complete blocks, because rounding may depend on the batch.
    block = max(1, min(BLOCK, BLOCK * 256**2 // size_px**2))
    hands = SyntheticHands(hand, size_px, seed)

    def drawn(first: int) -> list[_Drawn]:
        index = torch.arange(first, first + block)
        photos = hands.photos(index)
        is_right = Draws(keys(seed, _SIDE, index)).chance(0.5)
        both = torch.cat([photos.image, photos.hand_mask], 1)
        both = torch.where(is_right[:, None, None, None], both, both.flip(-1))
        columns = true_columns(photos, hands, is_right, size_px)
        pixels, masks = both[:, :3].permute(0, 2, 3, 1).numpy(), both[:, 3].numpy()
        return [
            (pixels[i], masks[i], {k: _row(v, i) for k, v in columns.items()})
            for i in range(min(block, count - first))
        ]

    # One block per thread: torch's own threads would wait for each other at every small step.
    threads = torch.get_num_threads()
    drawers = min(DRAWERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(drawers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        # Drawing is faster than writing, so it stays only a few blocks ahead.
        waiting: deque[Future[list[_Drawn]]] = deque()
        try:
            for first in range(0, count, block):
                waiting.append(pool.submit(drawn, first))
                if len(waiting) > 2 * drawers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()
            torch.set_num_threads(threads)


def _row(values: Any, i: int) -> Any:
    """Return row i of a column or of a struct of columns; None stays None."""
    if isinstance(values, dict):
        return {name: _row(column, i) for name, column in values.items()}
    return None if values is None else values[i : i + 1]


def true_columns(photos: Photos, hands: SyntheticHands, is_right: Tensor, size_px: int) -> dict[str, Any]:
    """Return the true label columns of B hands that `hands` drew."""
    scene, count = photos.scene, len(photos.scene)
    seen = hands.visible_vertices(photos)
    joint_visible = hands.visible_joints(photos, seen).numpy()
    half = size_px / 2
    mirror = torch.where(is_right, 1.0, -1.0)[:, None, None] * torch.tensor([1.0, 0, 0]) + torch.tensor(
        [0.0, 1, 1]
    )
    joints3d_mm, joints2d = scene.joints3d_mm * mirror, scene.project(scene.joints3d_mm) * mirror[..., :2]
    vertices2d = scene.project(scene.vertices_mm) * mirror[..., :2]
    axes = axes_of_ray(scene.ray * mirror[:, 0, :2])
    scale, translation = weak_perspective(crop_from_camera(joints3d_mm, axes), joints2d)
    vertices_px = (vertices2d.numpy() + 1) * half
    return {
        "box_xyxy": np.concatenate([vertices_px.min(1), vertices_px.max(1)], 1),
        "crop_xyxy": np.tile([0.0, 0.0, size_px, size_px], (count, 1)),
        "is_right": is_right.numpy(),
        "side_score": None,
        "detection_score": None,
        "joints3d_mm": joints3d_mm.numpy(),
        "joints3d_std_mm": None,
        "joints2d_px": (joints2d.numpy() + 1) * half,
        "joints2d_std_px": None,
        "vertices_mm": (scene.vertices_mm * mirror).numpy(),
        "vertices_std_mm": None,
        "pose": scene.pose.numpy(),
        "betas": scene.betas.numpy(),
        "camera": {
            "scale": scale.numpy(),
            "rotation": rotation_vectors(axes.mT.numpy()),
            "translation": translation.numpy(),
            "cam_t_mm": (scene.cam_t_mm * mirror[:, 0]).numpy(),
            "focal_px": scene.focal.numpy() * half,
            "principal_px": ((scene.principal * mirror[:, 0, :2]).numpy() + 1) * half,
            "focal_source": ["given"] * count,
        },
        "vertex_rgb": photos.vertex_rgb.numpy(),
        "vertex_visible": seen.numpy(),
        "visible_fraction": seen.float().mean(1).numpy(),
        "joint_visible": joint_visible,
        "hidden_joints": (~joint_visible).sum(1),
        "joint_std_mm": None,
        "max_joint_std_mm": None,
        "vertex_std_mm": None,
    }


def weak_perspective(points_mm: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Fit scale (B,) and translation (B, 2) that map points (B, N, 3), crop axes, to `seen` (B, N, 2)."""
    flat = points_mm[..., :2]
    around, seen_around = flat - flat.mean(1, keepdim=True), seen - seen.mean(1, keepdim=True)
    scale = (around * seen_around).sum((1, 2)) / around.square().sum((1, 2))
    return scale, seen.mean(1) - scale[:, None] * flat.mean(1)


def _table(name: str, columns: dict[str, Any], size_px: int, schema: pa.Schema) -> pa.Table:
    """Return the table of one photo, with one row."""
    row = {"image_uri": f"images/{name}", "image_id": name, "hand_index": 0, "status": "ok"}
    row |= {"width": size_px, "height": size_px, "box_source": "list"}
    return labels_to_table([row], columns, [0], schema)


def truth_facts(hand: HandModel, seed: int, size_px: int) -> str:
    """Return what the truth's metadata says, as JSON."""
    facts = {
        "schema_version": SCHEMA_VERSION,
        "synthetic": {"seed": seed, "size_px": size_px},
        "hand": hand.id,
        "shapes": {"joints3d_mm": [21, 3], "joints2d_px": [21, 2], "vertices_mm": [hand.vertex_count, 3]},
        "rounding": ROUNDING,
    }
    return json.dumps(facts, sort_keys=True)


def jpeg_bytes(photo: NDArray[np.uint8]) -> bytes:
    """Return a photo (H, W, 3) as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def check_folder(out: Path, names: set[str]) -> None:
    """Raise if the folder has files that are not from an earlier run of this command."""
    if not names_in(str(out)):
        return
    if not _is_truth(out / "truth.parquet"):
        raise UserError(f"'{out}' holds other files than synthetic photos: give an empty or a new folder")
    others = len(names_in(str(out / "images")) - names)
    if others:
        raise UserError(
            f"'{out / 'images'}' holds {others} files that are not among these {len(names)} photos: "
            "give an empty or a new folder"
        )


def _is_truth(path: Path) -> bool:
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return False
    return "synthetic" in json.loads(metadata.get(b"amvur", b"{}"))
