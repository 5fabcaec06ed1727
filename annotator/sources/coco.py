"""Read 2D hand keypoints in COCO's layout: one annotation per hand, or per person as in COCO-WholeBody.

`annotations[*].keypoints` are 21 times x, y, v in this project's order, which is COCO-WholeBody's and OpenPose's too:
wrist, then thumb to little finger, from palm to tip. v = 0 means not annotated. `bbox` (x, y, width, height) is
optional. The side comes from `is_right`, or from `left` or `right` in the category's name. In WholeBody it comes from
the field names `lefthand_kpts` and `righthand_kpts`. Coordinates stay unchanged.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.photos.crops import box_around_joints
from annotator.sources.fields import numbers, opened_file


@dataclass(frozen=True, eq=False)
class CocoHand:
    """One annotated hand."""

    photo: dict[str, Any]  # its element of `images`
    index: int  # of its annotation in the file
    hand_index: int  # within the photo
    is_right: bool | None  # None if the file does not give the side
    keypoints: NDArray[np.float64]  # (21, 3) x, y in photo pixels, v
    box_xywh: NDArray[np.float64] | None

    def joints2d_px(self) -> NDArray[np.float64]:
        """Return the joints (21, 2) in photo pixels; joints without annotation are NaN."""
        return np.where(self.keypoints[:, 2:] > 0, self.keypoints[:, :2], np.nan)

    def box_xyxy(self) -> NDArray[np.float64] | None:
        """Return the annotated box (4,), or the box around the joints; None without joints or with an empty box."""
        joints2d_px = self.joints2d_px()
        if np.isnan(joints2d_px).all():
            return None
        if self.box_xywh is None or not (self.box_xywh[2:] > 0).all():
            box = box_around_joints(joints2d_px)
        else:
            box = np.concatenate([self.box_xywh[:2], self.box_xywh[:2] + self.box_xywh[2:]])
        return box if (box[2:] > box[:2]).all() else None


def coco_photos(path: str) -> list[dict[str, Any]]:
    """Return the photos of an annotation file, with or without hands: `id`, `file_name` and all other fields.

    Raises:
        UserError: the file is missing or malformed; names the photo and the field.
    """
    return _photos(_read(path), path)


def coco_hands(path: str) -> Iterator[CocoHand]:
    """Yield every hand of an annotation file.

    Raises:
        UserError: the file is missing or malformed; names the annotation and the field.
    """
    document = _read(path)
    photos = {photo["id"]: photo for photo in _photos(document, path)}
    categories = document.get("categories") or []
    sides = {
        category["id"]: str(category.get("name", "")).lower()
        for category in categories
        if type(category) is dict and isinstance(category.get("id"), (int, str))
    }
    counts: Counter[Any] = Counter()
    for index, annotation in enumerate(_listed(document, "annotations", path, image_id=(int, str))):
        where = f"{path}: annotation {index}"
        photo = photos.get(annotation["image_id"])
        if photo is None:
            raise UserError(f"{where}: image_id: no image has the id {annotation['image_id']!r}")
        for is_right, keypoints, box in _sided(annotation, sides, where):
            yield CocoHand(photo, index, counts[photo["id"]], is_right, keypoints.reshape(21, 3), box)
            counts[photo["id"]] += 1


def _sided(
    annotation: dict[str, Any], sides: dict[Any, str], where: str
) -> Iterator[tuple[bool | None, NDArray[np.float64], NDArray[np.float64] | None]]:
    """Yield the hands of one annotation: side (True is right), keypoints (63,), box (4,) or None."""
    if "lefthand_kpts" in annotation or "righthand_kpts" in annotation:
        for side in ("left", "right"):
            name = f"{side}hand_kpts"
            if annotation.get(f"{side}hand_valid", name in annotation):
                keypoints = numbers(annotation.get(name), (63,), f"{where}: {name}")
                box = annotation.get(f"{side}hand_box")
                yield side == "right", keypoints, _optional_box(box, f"{where}: {side}hand_box")
        return
    keypoints = numbers(annotation.get("keypoints"), (63,), f"{where}: keypoints")
    is_right = annotation.get("is_right")
    if is_right is None:
        category = annotation.get("category_id")
        name = sides.get(category, "") if isinstance(category, (int, str)) else ""
        if ("right" in name) != ("left" in name):
            is_right = "right" in name
    elif is_right not in (0, 1):
        raise UserError(f"{where}: is_right: expected true or false, got {is_right!r}")
    yield (
        None if is_right is None else bool(is_right),
        keypoints,
        _optional_box(annotation.get("bbox"), f"{where}: bbox"),
    )


def _photos(document: dict[str, Any], path: str) -> list[dict[str, Any]]:
    return _listed(document, "images", path, id=(int, str), file_name=(str,))


def _optional_box(value: Any, where: str) -> NDArray[np.float64] | None:
    return None if value is None else numbers(value, (4,), where)


def _read(path: str) -> dict[str, Any]:
    with opened_file(path) as file:
        try:
            document = json.load(file)
        except ValueError as error:
            raise UserError(f"{path}: not JSON, or cut short: {error}") from None
    if type(document) is not dict:
        raise UserError(f"{path}: expected an object with images and annotations")
    return document


def _listed(
    document: dict[str, Any], name: str, path: str, **needed: tuple[type, ...]
) -> list[dict[str, Any]]:
    """Return a list of objects, after checking that each has the fields `needed` with one of their types."""
    items = document.get(name)
    if type(items) is not list:
        raise UserError(f"{path}: {name}: expected a list")
    for index, item in enumerate(items):
        for field, types in needed.items():
            if type(item) is not dict or type(item.get(field)) not in types:
                expected = " or ".join("text" if kind is str else "a number" for kind in types)
                raise UserError(f"{path}: {name.rstrip('s')} {index}: {field}: expected {expected}")
    return items
