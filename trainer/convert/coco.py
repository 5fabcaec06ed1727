"""Convert annotations in COCO layout (`annotator.sources.coco`) to training examples: photos with 2D joints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from annotator.photos.errors import PhotoError
from annotator.sources.coco import CocoHand, coco_hands
from annotator.storage.files import join
from trainer.convert.photos import photo_columns


def coco_examples(
    annotations: str, images: str | None, chance: np.random.Generator
) -> Iterator[dict[str, Any] | str]:
    """Yield the examples of an annotation file, shuffled, or the reason why one is left out.

    Args:
        annotations: the JSON file.
        images: the folder to which each `file_name` is relative; default: the file's folder, or `images` in it.
        chance: random generator for the order.

    Raises:
        UserError: the file is missing or malformed; the message names the annotation and the field.
    """
    beside = annotations.rpartition("/")[0] or "."
    folders = [images] if images else [beside, join(beside, "images")]
    hands = list(coco_hands(annotations))
    for index in chance.permutation(len(hands)).tolist():
        yield _example(hands[index], folders)


def _example(hand: CocoHand, folders: list[str]) -> dict[str, Any] | str:
    if hand.is_right is None:
        return "unknown side: no is_right, and no left or right in the category's name"
    joints2d_px = hand.joints2d_px()
    if np.isnan(joints2d_px).all():
        return "no annotated joints"
    box = hand.box_xyxy()
    if box is None:
        return "a box without area"
    photo = None
    for folder in folders:
        try:
            url = join(folder, hand.photo["file_name"])
            photo = photo_columns(url)
            break
        except PhotoError as error:
            reason = error.reason
    if photo is None:
        return f"photo {reason}"
    if any((hand.photo.get(side) or photo[side]) != photo[side] for side in ("width", "height")):
        return "photo size differs from the annotations"
    return photo | {
        "image_uri": url,
        "image_id": hand.photo["file_name"],
        "hand_index": hand.hand_index,
        "source_index": hand.index,
        "is_right": hand.is_right,
        "joints2d_px": joints2d_px,
        "box_xyxy": box,
        "box_source": "list",
    }
