"""The decode stage: photos of entries to upright pixels, and crops of their hands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.detection.detector import ENOUGH_PX
from annotator.detection.following import FrameHands
from annotator.job.detect_hands import FollowSettings, GetDetector, detect_hands
from annotator.job.shard import Shard
from annotator.job.stages.rows import first_row, row_of_error
from annotator.labels.schema import without_hand
from annotator.photos.crops import Crops, crop_photo
from annotator.photos.decode import Photo
from annotator.photos.errors import PhotoError
from annotator.sources.camera import camera_of
from annotator.sources.entry import Entry
from annotator.sources.read import photos_of

#: Minimum length of a hand's box. A shorter one is a mistake, such as fractions of the photo given as pixels.
MIN_BOX_PX = 8


def decoded_photos(
    entries: Sequence[Entry], min_side_px: Callable[[Entry], int]
) -> Iterator[tuple[Entry, dict[str, Any], Photo | None]]:
    """Yield each entry with its row and photo; an unreadable photo is None, with the reason in the row."""
    photos = photos_of([entry for entry in entries if not entry.fault], min_side_px)
    for entry in entries:
        row = first_row(entry)
        if entry.fault:
            yield entry, row | without_hand(*entry.fault), None
            continue
        photo = next(photos)
        if isinstance(photo, Exception):
            yield entry, row | row_of_error(photo), None
        else:
            yield entry, row | {"width": photo.width, "height": photo.height}, photo


def decode_shard(
    entries: Sequence[Entry],
    crop_px: int,
    get_detector: GetDetector | None = None,
    margin: float = 1.0,
    hand_length_mm: float | None = None,
    follow_settings: FollowSettings | None = None,
) -> Shard:
    """Decode every photo of a shard and crop its hands. An unreadable photo becomes a row with its reason.

    Hands come from the entry's list, else from the detector that `get_detector` returns, in videos as
    `follow_settings` state. Without either, each photo is the crop around one hand. Crops have `crop_px` pixels per
    side and cover `margin` times the crop's square.

    Raises:
        UserError: the detector cannot be used.
    """
    shard = Shard()
    cut: list[Crops] = []
    side_px = math.ceil(crop_px / margin)
    photos = decoded_photos(entries, lambda entry: side_px if _is_crop(entry, get_detector) else ENOUGH_PX)
    with_hands = (
        detect_hands(photos, get_detector, follow_settings)
        if get_detector
        else ((*photo, None) for photo in photos)
    )
    for entry, row, photo, found in with_hands:
        if photo is None:
            shard.rows.append(row)
            continue
        try:
            sources, crops = _hands(entry, photo, crop_px, margin, found, hand_length_mm)
        except Exception as error:  # an internal bug or a bug of the detector fails one photo, not the run
            shard.rows.append(row | row_of_error(error))
            continue
        if not crops:
            shard.rows.append(row | without_hand("no_hand_found", "the detector found no hand"))
            continue
        shard.hand_rows += range(len(shard.rows), len(shard.rows) + len(crops))
        first = entry.first_hand
        shard.rows += [row | {"hand_index": first + k, "box_source": s} for k, s in enumerate(sources)]
        cut += crops
    shard.crops = Crops.stack(cut) if cut else None
    return shard


def _is_crop(entry: Entry, get_detector: GetDetector | None) -> bool:
    """Return whether the photo is the crop around one hand. Decided per entry, independent of the others."""
    return get_detector is None and not entry.lists_boxes


def _hands(
    entry: Entry,
    photo: Photo,
    crop_px: int,
    margin: float,
    found: FrameHands | None,
    hand_length_mm: float | None,
) -> tuple[list[str], list[Crops]]:
    """Return the sources of the hands' boxes, and their crops; `found` by the detector.

    Raises:
        Exception: the detector's error.
    """
    length_mm = entry.hand_length_mm or hand_length_mm
    camera = camera_of(entry, photo)

    def crop(
        box: Sequence[float] | None,
        right_score: float | None,
        joints2d_px: NDArray[np.floating] | None = None,
    ) -> Crops:
        return crop_photo(
            photo.pixels,
            photo.width,
            photo.height,
            crop_px,
            box,
            right_score,
            margin,
            length_mm,
            camera,
            joints2d_px,
        )

    hands = entry.hands
    if hands and entry.lists_boxes:
        return ["list"] * len(hands), [
            crop(listed_box(hand.box_xyxy, entry, photo) if hand.box_xyxy else None, hand.right_score)
            for hand in hands
        ]
    if entry.lists_boxes:
        return [], []
    listed_score = hands[0].right_score if hands else None
    if found is None:
        return ["photo"], [crop(None, listed_score)]
    if found.error is not None:
        raise found.error
    return [hand.source for hand in found.hands], [
        crop(
            hand.box_xyxy.tolist(),
            hand.right_score if listed_score is None else listed_score,
            hand.joints2d_px,
        )
        for hand in found.hands
    ]


def listed_box(box_xyxy: Sequence[float], entry: Entry, photo: Photo) -> tuple[float, float, float, float]:
    """Convert a listed hand's box to photo pixels.

    Raises:
        PhotoError: the box lies outside the photo, or is too small for a hand.
    """
    across, down = {
        "file": photo.stretch_xy,
        "photo": (1.0, 1.0),
        "fraction": (photo.width, photo.height),
    }[entry.boxes_in]
    x0, y0, x1, y1 = box_xyxy
    box = x0 * across, y0 * down, x1 * across, y1 * down
    size = f"{photo.width} x {photo.height} pixels"
    if box[2] <= 0 or box[3] <= 0 or box[0] >= photo.width or box[1] >= photo.height:
        raise PhotoError("box_outside", f"the listed box {box} lies outside the photo of {size}")
    if max(box[2] - box[0], box[3] - box[1]) < MIN_BOX_PX:
        raise PhotoError(
            "too_small", f"the listed box {box} is smaller than {MIN_BOX_PX} pixels: too small to show a hand"
        )
    inside = max(box[0], 0), max(box[1], 0), min(box[2], photo.width), min(box[3], photo.height)
    if inside != box and min(inside[2] - inside[0], inside[3] - inside[1]) < MIN_BOX_PX:
        raise PhotoError(
            "box_outside",
            f"less than {MIN_BOX_PX} pixels of the listed box {box} lie inside the photo of {size}",
        )
    return box
