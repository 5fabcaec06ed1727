"""Synthetic photos and their true labels, as files."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from annotator import frames
from annotator.errors import UserError
from annotator.frames import CropFrame
from annotator.hand import HandModel, load_hand
from annotator.hand.layer import HandLayer
from annotator.io.schema import ROUNDING, SCHEMA_VERSION, encode_table, label_schema, labels_to_table
from annotator.io.storage import check_writable, names_in, write_whole
from trainer.synth.draw import Figure, draw_photos, see
from trainer.synth.forearm import ForearmMesh
from trainer.synth.scene import Scene, sample_scenes

#: Photos whose scenes are drawn from one random generator, always all of them, so that a photo is the same however
#: many are asked for.
BLOCK = 32

#: Threads that draw, at most: each takes about 0.7 GB for the largest photos.
DRAWERS = 4

JPEG_QUALITY = 92


def write_photos(out: Path, count: int, seed: int, size_px: int) -> None:
    """Write out/images/000000.jpg ... and out/truth.parquet, their true labels (schema version 1).

    The same seed gives the same files; photo i does not depend on `count`. Files of an earlier run are
    overwritten. In the truth, `image_id` is the file's name, `image_uri` its place beside the table, the crop
    is the whole photo, `box_xyxy` holds the hand, `vertex_rgb` is skin without light, and every std is null.

    Raises:
        UserError: the folder can't be written, or holds something else.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative: give 0 or more")
    names = [f"{index:06d}.jpg" for index in range(count)]
    _check_folder(out, set(names))
    check_writable(str(out))
    hand = load_hand("open")
    schema = label_schema(hand.vertex_count, {"amvur": _facts(hand, seed, size_px)})
    try:
        # A truth without rows marks the folder as ours until its photos are all there.
        write_whole(str(out / "truth.parquet"), encode_table(schema.empty_table()))
        (out / "images").mkdir(exist_ok=True)
        tables = []
        for name, (photo, columns) in zip(names, _photos(hand, count, seed, size_px), strict=True):
            (out / "images" / name).write_bytes(_jpeg(photo))
            tables.append(_table(name, columns, size_px, schema))
        write_whole(str(out / "truth.parquet"), encode_table(pa.concat_tables(tables).combine_chunks()))
    except OSError as error:
        raise UserError(f"can't write to '{out}': {error.strerror or error}") from None


def _photos(
    hand: HandModel, count: int, seed: int, size_px: int
) -> Iterator[tuple[NDArray[np.uint8], dict[str, Any]]]:
    """Photos (H, W, 3), each with the label columns of its one hand."""
    layer, arm = HandLayer(hand), ForearmMesh.of(hand)
    figure = Figure.of(hand, arm)

    def drawn(scene: Scene, look: np.random.Generator) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        seen = see(figure, scene)
        photos, skin = draw_photos(figure, scene, seen, size_px, look)
        return photos[0].numpy(), _columns(scene, seen.vertices.numpy(), skin.numpy(), size_px)

    # Threads of our own, each with a photo and a core: torch's would wait for one another at every small step.
    threads = torch.get_num_threads()
    drawers = min(DRAWERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(drawers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for block in range(0, count, BLOCK):
                generator = np.random.default_rng([seed, block])
                scenes = pool.submit(sample_scenes, hand, layer, arm, BLOCK, generator).result()
                wanted = range(min(BLOCK, count - block))
                looks = generator.spawn(BLOCK)
                yield from pool.map(drawn, (scenes[i : i + 1] for i in wanted), looks)
        finally:
            torch.set_num_threads(threads)


def _columns(scene: Scene, seen: NDArray[np.bool_], skin: NDArray[np.uint8], size_px: int) -> dict[str, Any]:
    """Label columns of B hands: what `annotate` would say if it made no error."""
    count = len(scene)
    half = size_px / 2
    frame = CropFrame(np.full((count, 2), half), np.full(count, half), np.zeros(count, bool))
    joints3d_mm = scene.joints3d_mm.numpy()
    joints2d_px = frame.photo_from_crop(scene.project(scene.joints3d_mm)[..., :2].numpy())
    vertices_px = frame.photo_from_crop(scene.project(scene.vertices_mm)[..., :2].numpy())
    focal_px = np.full(count, frames.assumed_focal_px(size_px, size_px, photo_is_crop=True))
    return {
        "box_xyxy": np.concatenate([vertices_px.min(1), vertices_px.max(1)], 1),
        "crop_xyxy": np.tile([0.0, 0.0, size_px, size_px], (count, 1)),
        "is_right": scene.is_right.numpy(),
        "side_score": None,
        "detection_score": None,
        "joints3d_mm": joints3d_mm,
        "joints3d_std_mm": None,
        "joints2d_px": joints2d_px,
        "joints2d_std_px": None,
        "vertices_mm": scene.vertices_mm.numpy(),
        "vertices_std_mm": None,
        "pose": scene.pose.numpy(),
        "betas": scene.betas.numpy(),
        "camera": {
            "scale": scene.scale_per_mm.numpy(),
            "rotation": np.zeros((count, 3)),
            "translation": scene.translation.numpy(),
            "cam_t_mm": frames.camera_translation(
                joints3d_mm, joints2d_px, focal_px, np.full((count, 2), half)
            ),
            "focal_px": focal_px,
            "focal_source": ["assumed"] * count,
        },
        "vertex_rgb": skin,
        "vertex_visible": seen,
        "visible_fraction": seen.mean(1),
        "joint_std_mm": None,
        "max_joint_std_mm": None,
        "vertex_std_mm": None,
    }


def _table(name: str, columns: dict[str, Any], size_px: int, schema: pa.Schema) -> pa.Table:
    """The one row of a photo."""
    row = {"image_uri": f"images/{name}", "image_id": name, "hand_index": 0, "status": "ok"}
    row |= {"width": size_px, "height": size_px, "box_source": "list"}
    return labels_to_table([row], columns, [0], schema)


def _facts(hand: HandModel, seed: int, size_px: int) -> str:
    facts = {
        "schema_version": SCHEMA_VERSION,
        "synthetic": {"seed": seed, "size_px": size_px},
        "hand": hand.id,
        "shapes": {"joints3d_mm": [21, 3], "joints2d_px": [21, 2], "vertices_mm": [hand.vertex_count, 3]},
        "rounding": ROUNDING,
    }
    return json.dumps(facts, sort_keys=True)


def _jpeg(photo: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _check_folder(out: Path, names: set[str]) -> None:
    """Refuse a folder in which something that is not an earlier run's would be overwritten or mixed in."""
    if not names_in(str(out)):
        return
    if not _is_truth(out / "truth.parquet"):
        raise UserError(
            f"'{out}' holds something that is not synthetic photos: give an empty or a new folder"
        )
    others = len(names_in(str(out / "images")) - names)
    if others:
        raise UserError(
            f"'{out / 'images'}' holds {others} files beside these {len(names)} photos: give an empty or a new folder"
        )


def _is_truth(path: Path) -> bool:
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return False
    return "synthetic" in json.loads(metadata.get(b"amvur", b"{}"))
