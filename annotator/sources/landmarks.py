"""Hands with landmarks: labels from `amvur detect`, or annotations in COCO's layout.

Entries carry the landmarks, and no photo is opened. `extra` holds each photo's width and height, and the columns that
pass through.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from annotator.errors import UserError, printable
from annotator.labels.folder import read_columns
from annotator.labels.schema import label_schema
from annotator.labels.side import right_score
from annotator.sources.coco import CocoHand, coco_hands, coco_photos
from annotator.sources.entry import Entry, Fault, ListedHand, path_as_utf8
from annotator.sources.label_set import LabelSet
from annotator.sources.source import Source
from annotator.storage.files import is_local, join, local_path
from annotator.storage.remote import without_secrets

_OF_PHOTO = ("image_uri", "image_id", "duplicate", "frame_index", "frame_time_s", "width", "height")
_OF_HAND = (
    *("status", "reason", "error", "box_xyxy", "is_right", "side_score", "detection_score"),
    *("joints2d_px", "landmark_depth_px"),
)


class LandmarkSource(Source):
    """Photos whose hands have landmarks."""

    has_depth: bool
    box_source: str  # as labels name it

    def key(self, entry: Entry) -> tuple[int]:
        """Return the photo's number."""
        return (entry.order,)


def open_landmarks(place: str, images: str | None = None) -> LandmarkSource:
    """Open landmarks at a path or URL.

    Args:
        place: a label set from `amvur detect`, or a `.json` file in COCO's layout.
        images: for COCO, the folder that `file_name`s are relative to; default: the JSON file's folder, or `images` in
            it.

    Raises:
        UserError: `place` has no landmarks, its run is unfinished, or `images` is given for a label set.
    """
    if place.lower().endswith(".json"):
        return CocoLandmarks(place, images)
    if images:
        raise UserError(
            "images applies only to annotations in COCO's layout: labels have the uris of their photos"
        )
    return DetectedLandmarks(place)


class DetectedLandmarks(LandmarkSource):
    """The rows of a label set from `amvur detect`, grouped by photo."""

    has_depth, box_source = True, "detector"

    def __init__(self, labels: str) -> None:
        """Check the first label file.

        Raises:
            UserError: the folder has no landmarks with depth, or its run is unfinished.
        """
        super().__init__()
        self._set = LabelSet(
            labels,
            unfinished="is unfinished: run the same `amvur detect` command again first",
            empty="has no landmarks: give the output of `amvur detect`, or a .json file in COCO's layout",
        )
        schema = self._set.schema
        if "landmark_depth_px" not in schema.names:
            raise UserError(
                f"'{self._set.name}' has no landmarks with depth: run `detect` of this amvur version into a new folder"
            )
        own = set(label_schema(1).names)
        self.columns = {field.name: field.type for field in schema if field.name not in own}
        self.place = self._set.photos_place()

    def __iter__(self) -> Iterator[Entry]:
        names = [*_OF_PHOTO, *_OF_HAND, *self.columns]
        order = 0
        for file in self._set.files():
            rows = read_columns(self._set.labels, file, names).to_pylist()
            for _, hands in groupby(rows, key=lambda row: (row["image_uri"], row["image_id"])):
                yield self._entry(order, list(hands))
                order += 1

    def _entry(self, order: int, rows: list[dict[str, Any]]) -> Entry:
        first = rows[0]
        hands = None
        fault = None
        if first["status"] == "ok":
            hands = tuple(_detected(row) for row in rows)
        else:
            fault = Fault(first["reason"], first["error"])
        return Entry(
            path=first["image_uri"],
            id=first["image_id"],
            order=order,
            frame_index=first["frame_index"],
            frame_time_s=first["frame_time_s"],
            hands=hands,
            duplicate=first["duplicate"],
            fault=fault,
            extra={name: first[name] for name in ("width", "height", *self.columns)},
        )


def _detected(row: dict[str, Any]) -> ListedHand:
    right = None if row["is_right"] is None else right_score(row["is_right"], row["side_score"])
    depth = row["landmark_depth_px"] or [None] * 21
    landmarks = tuple((*joint, z) for joint, z in zip(row["joints2d_px"], depth, strict=True))
    return ListedHand(tuple(row["box_xyxy"]), right, landmarks, row["detection_score"])


class CocoLandmarks(LandmarkSource):
    """The photos of a file in COCO's layout, in the file's order; keypoints have no depth."""

    has_depth, box_source = False, "list"

    def __init__(self, path: str, images: str | None = None) -> None:
        """Read the file into memory: COCO's layout allows nothing less.

        Raises:
            UserError: the file is missing or malformed, or has no hand.
        """
        super().__init__()
        self._photos = coco_photos(path)
        self._hands: dict[Any, list[CocoHand]] = defaultdict(list)
        for hand in coco_hands(path):
            self._hands[hand.photo["id"]].append(hand)
        if not self._hands:
            raise UserError(f"'{printable(without_secrets(path))}' has no annotated hand")
        for number, photo in enumerate(self._photos):
            if any(not isinstance(photo.get(side), int) or photo[side] < 1 for side in ("width", "height")):
                raise UserError(f"{path}: image {number}: width, height: expected pixels")
        self._folder = images or self._folder_beside(path)
        self.place = self._folder

    def _folder_beside(self, path: str) -> str:
        beside = path.rpartition("/")[0] or "."
        if is_local(beside):
            beside = str(local_path(beside).absolute())
        inside = join(beside, "images")
        first = self._photos[0]["file_name"]
        if is_local(inside) and local_path(join(inside, first)).exists():
            return inside
        return beside

    def __iter__(self) -> Iterator[Entry]:
        names: set[str] = set()
        for order, photo in enumerate(self._photos):
            name = photo["file_name"]
            hands = tuple(_annotated(hand) for hand in self._hands.get(photo["id"], ()))
            yield Entry(
                path=join(self._folder, name),
                id=path_as_utf8(name),
                order=order,
                hands=hands or None,
                duplicate=name in names,
                fault=None if hands else Fault("not_listed", "the annotations have no hand in this photo"),
                extra={"width": photo["width"], "height": photo["height"]},
            )
            names.add(name)


def _annotated(hand: CocoHand) -> ListedHand:
    landmarks = tuple(
        (None, None, None) if math.isnan(x) else (float(x), float(y), None) for x, y in hand.joints2d_px()
    )
    box = hand.box_xyxy()
    return ListedHand(
        None if box is None else tuple(box.tolist()),
        None if hand.is_right is None else float(hand.is_right),
        landmarks,
    )
