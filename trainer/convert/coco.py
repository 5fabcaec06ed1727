"""Convert annotations in COCO's layout (`annotator.sources.coco`) to training examples: photos with 2D joints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from annotator.photos.decode import PhotoError
from annotator.sources.coco import CocoHand, coco_hands
from annotator.storage.files import join
from trainer.convert.photos import photo_columns


def coco_examples(
    annotations: str, images: str | None, chance: np.random.Generator
) -> Iterator[dict[str, Any] | str]:
    """The examples of an annotation file, shuffled; instead of one, why it was left out.

    Args:
        annotations: the JSON file.
        images: the folder that its `file_name`s start from; without, the file's own folder or `images` in it.
        chance: for the order.

    Raises:
        UserError: the file is missing or malformed; names the annotation and the field.
    """
    beside = annotations.rpartition("/")[0] or "."
    folders = [images] if images else [beside, join(beside, "images")]
    hands = list(coco_hands(annotations))
    for place in chance.permutation(len(hands)).tolist():
        yield _example(hands[place], folders)


def _example(hand: CocoHand, folders: list[str]) -> dict[str, Any] | str:
    if hand.is_right is None:
        return "nothing says which hand it is (is_right, or left or right in the category's name)"
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
        return "a photo of another size than the annotations say"
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
