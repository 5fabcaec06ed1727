"""Convert annotations in COCO layout (`annotator.sources.coco`) to training examples: photos with 2D joints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from annotator.photos.errors import PhotoError
from annotator.sources.coco import CocoHand, coco_hands
from annotator.storage.files import join
from trainer.convert.photos import photo_columns


def coco_rows(annotations: str, chance: np.random.Generator) -> Iterator[CocoHand]:
    """Yield the hands of an annotation file, shuffled.

    Args:
        annotations: the JSON file.
        chance: random generator for the order.

    Raises:
        UserError: the file is missing or malformed; the message names the annotation and the field.
    """
    hands = list(coco_hands(annotations))
    for index in chance.permutation(len(hands)).tolist():
        yield hands[index]


def photo_folders(annotations: str, images: str | None) -> list[str]:
    """Return the folders of the photos: the given one, or the annotation file's, and `images` in it."""
    beside = annotations.rpartition("/")[0] or "."
    return [images] if images else [beside, join(beside, "images")]


def coco_example(folders: list[str], hand: CocoHand) -> dict[str, Any] | str:
    """Return the example of a hand, or the reason why it is left out."""
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
