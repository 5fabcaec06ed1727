"""FreiHAND (Zimmermann et al., ICCV 2019) as downloaded: `training` and `evaluation`, right hands.

    training_{K,mano,xyz,verts,scale}.json     one list each, one entry per pose; metres, camera axes
    training/rgb/%08d.jpg                      each pose once, or four times with different backgrounds
    training/mask/%08d.jpg                     mask of the hand, one per pose
    evaluation_{K,scale}.json, evaluation/rgb  and, since 2021, evaluation_{mano,xyz,verts}.json

Photo i shows pose i modulo the number of poses. `xyz` holds articulated joints and tip vertices, those of this project
in its order, so it equals J3. `mano` holds 48 rotations without MANO's mean pose, 10 betas, and 3 numbers that are
redundant with `xyz`. K has the photo's centre at 112, the pixel convention of this project.

**Crops of the evaluation.** Its photos are cut around the hand, but wider than training crops. In a training crop the
hand's box fills 1/1.3 of the side (`photos.crops.BOX_PADDING`) before augmentation; in these photos about 0.58. `K` and
`scale` give neither position nor size of a hand, and the truth must not be used. So every evaluation photo gets the
same box: a square of `EVALUATION_HAND_SHARE` of the photo in its middle, padded as usual, 169 of 224 pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.hand.mano_mesh import VERTEX_COUNT
from annotator.hand.model import HandModel
from annotator.sources.fields import read_arrays
from annotator.storage.files import join, names_in
from trainer.convert.photos import required_mask, required_photo
from trainer.convert.pinhole import camera_columns, hand_columns

_SHAPES = {"K": (3, 3), "scale": (), "xyz": (21, 3), "verts": (VERTEX_COUNT, 3), "mano": (1, 61)}
_ALWAYS = ("K", "scale")

#: Versions of each training photo: the green screen and three synthetic backgrounds.
VERSIONS = 4

#: Typical side of the hand's box over that of an evaluation photo. Not measured here, because the files are missing.
EVALUATION_HAND_SHARE = 0.58


def freihand_examples(
    root: str, hand: HandModel, split: str, chance: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Yield the examples of a split (`train` or `evaluation`), shuffled.

    Meshes, poses and betas exist if `hand` is MANO. All evaluation photos have the same box (see above), even if their
    truth is known.

    Raises:
        UserError: a file is missing or malformed; the message names the file and the entry.
    """
    name = "training" if split == "train" else split
    fields = _annotations(root, name)
    poses = len(fields["K"])
    photos = _photo_count(join(root, name, "rgb"), poses, versions=VERSIONS if split == "train" else 1)
    masks = names_in(join(root, name, "mask")) if split == "train" else set()
    for photo in chance.permutation(photos).tolist():
        pose, file = photo % poses, f"{photo:08d}.jpg"
        row = required_photo(join(root, name, "rgb", file))
        row |= {
            "image_uri": join(root, name, "rgb", file),
            "image_id": f"{name}/rgb/{file}",
            "source_index": photo,
            "is_right": True,
            "reference_bone_mm": 1000 * float(fields["scale"][pose]),
        }
        mask = f"{pose:08d}.jpg"
        if mask in masks:
            row["hand_mask"] = required_mask(join(root, name, "mask", mask), row["width"], row["height"])
        row |= _hand(fields, pose, hand, join(root, f"{name}_K.json"))
        if split == "evaluation":
            centre = np.array([row["width"], row["height"]]) / 2
            half_side_px = EVALUATION_HAND_SHARE * centre.max()
            row |= {"box_xyxy": np.concatenate([centre - half_side_px, centre + half_side_px])}
            row |= {"box_source": "list"}
        yield row


def _hand(fields: dict[str, NDArray[np.float32]], pose: int, hand: HandModel, file: str) -> dict[str, Any]:
    where = f"{file}: entry {pose}"
    K = fields["K"][pose].astype(np.float64)
    columns = camera_columns(K, where)
    verts_mm = 1000 * fields["verts"][pose].astype(np.float64) if "verts" in fields else None
    if "xyz" in fields:
        joints_mm = 1000 * fields["xyz"][pose].astype(np.float64)
        columns |= hand_columns(joints_mm, verts_mm, K, where)
        if verts_mm is not None and hand.name == "mano":
            columns["vertices_mm"] = verts_mm - joints_mm[0]
    if "mano" in fields and hand.name == "mano":
        mano = fields["mano"][pose, 0]
        mean = np.concatenate([np.zeros(3), hand.hands_mean])
        columns |= {"pose": mano[:48] + mean, "betas": mano[48:58]}
    return columns


def _annotations(root: str, name: str) -> dict[str, NDArray[np.float32]]:
    """Read the fields of a split; fields of the evaluation that were published later may be missing."""
    names = names_in(root)
    fields = {
        field: read_arrays(join(root, f"{name}_{field}.json"), shape)
        for field, shape in _SHAPES.items()
        if name == "training" or field in _ALWAYS or f"{name}_{field}.json" in names
    }
    for field, values in fields.items():
        if len(values) != len(fields["K"]):
            raise UserError(
                f"{join(root, f'{name}_{field}.json')}: holds {len(values)} entries, "
                f"expected {len(fields['K'])} as in {name}_K.json"
            )
    return fields


def _photo_count(folder: str, poses: int, versions: int) -> int:
    count = sum(bool(re.fullmatch(r"\d{8}\.jpg", name)) for name in names_in(folder))
    if count not in (poses, versions * poses):
        times = f" or {versions * poses}" if versions > 1 else ""
        raise UserError(f"{folder}: holds {count} photos (%08d.jpg), expected {poses}{times}")
    return count
