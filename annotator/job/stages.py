"""The stages of a shard: decode, predict, write. Plain functions on one shard, without Ray.

    entries --decode_shard--> Shard with crops --predict_shard--> Shard with hands --shard_table--> a label file

Every entry becomes a row, whether it succeeds or fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.detection.detector import ENOUGH_PX
from annotator.detection.following import FrameHands
from annotator.job.detected import FindHands, Following, detected
from annotator.job.shard import Shard, join_hands
from annotator.labels.finite import finite_rows, rows_of
from annotator.labels.folder import opened_label_file
from annotator.labels.schema import Columns, labels_to_table, without_hand
from annotator.photos.crops import Crops, crop_photo
from annotator.photos.decode import Photo
from annotator.photos.errors import PhotoError
from annotator.sources.camera import camera_of
from annotator.sources.entry import Entry
from annotator.sources.read import photos_of

if TYPE_CHECKING:  # decoders and writers start seconds sooner without torch
    from annotator.predictor import Predictor, Side

#: Minimum length of a hand's box. A shorter one is a mistake, such as fractions of the photo given as pixels.
MIN_BOX_PX = 8


def first_row(entry: Entry) -> dict[str, Any]:
    """Return the values that all rows of an entry share, as a row without a hand."""
    return {
        "image_uri": entry.uri,
        "image_id": entry.id,
        "duplicate": entry.duplicate,
        "frame_index": entry.frame_index,
        "frame_time_s": entry.frame_time_s,
        # An earlier row counts for the photo; this one keeps its index among the hands, also without labels.
        "hand_index": entry.first_hand or -1,
        **entry.extra,
    }


def row_of_error(error: Exception) -> dict[str, Any]:
    """Return status, reason and message of an entry that an error stopped: an unreadable photo or an internal bug."""
    if isinstance(error, PhotoError):
        return without_hand(error.reason, str(error))
    return without_hand("internal_error", one_line(error))


def crashed_shard(entries: Sequence[Entry]) -> Shard:
    """Return rows of entries that crashed every process that opened them."""
    outcome = without_hand("crashed", "every process that decoded this photo crashed")
    return Shard([first_row(entry) | outcome for entry in entries])


@dataclass(frozen=True)
class Stages:
    """Functions of a run's stages. They are pickled and run in other processes."""

    decode: Callable[[Sequence[Entry]], Shard]
    #: Called once in each actor; None for a job without a predict stage.
    model: Callable[[], Callable[[Shard], Shard]] | None
    schema: pa.Schema
    #: Changes a shard in place once all its hands are labelled.
    finish_shard: Callable[[Shard], None] | None = None
    #: Rows of entries that crashed every process that opened them.
    crashed: Callable[[Sequence[Entry]], Shard] = crashed_shard


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
    find: FindHands | None = None,
    margin: float = 1.0,
    hand_length_mm: float | None = None,
    following: Following | None = None,
) -> Shard:
    """Decode every photo of a shard and crop its hands. An unreadable photo becomes a row with its reason.

    Hands come from the entry's list, else from the detector that `find` returns, in videos as `following` states.
    Without either, each photo is the crop around one hand. Crops have `crop_px` pixels per side and cover `margin`
    times the crop's square.

    Raises:
        UserError: the detector cannot be used.
    """
    shard = Shard()
    cut: list[Crops] = []
    side_px = math.ceil(crop_px / margin)
    photos = decoded_photos(entries, lambda entry: side_px if _is_crop(entry, find) else ENOUGH_PX)
    with_hands = detected(photos, find, following) if find else ((*photo, None) for photo in photos)
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


def _is_crop(entry: Entry, find: FindHands | None) -> bool:
    """Return whether the photo is the crop around one hand. Decided per entry, independent of the others."""
    return find is None and not entry.lists_boxes


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


class ModelBrokenError(Exception):
    """A model that fails for every hand, for example after a GPU error that only a new process clears."""


def predict_shard(
    predictor: Predictor, shard: Shard, side: Side, samples: int = 0, columns: Columns = "all"
) -> Shard:
    """Label the crops of a shard; arguments are those of `Predictor.predict_crops`.

    Raises:
        ModelBrokenError: all of several hands fail.
    """
    crops = shard.crops
    if crops is None:
        return Shard(shard.rows, shard.hand_rows)
    try:
        hands = predictor.predict_crops(crops, side, samples, columns)
        return _labelled(shard, hands, predictor.checkpoint.id)
    except Exception as error:
        if len(crops) == 1:
            return _without_labels(shard, error)
    # One hand may have caused the error: label each alone, so that the others keep their labels.
    parts: list[Shard] = []
    failed = 0
    for number, row in enumerate(shard.hand_rows):
        alone = Shard([shard.rows[row]], [0], crops[number : number + 1])
        parts.append(predict_shard(predictor, alone, side, samples, columns))
        failed += not parts[-1].hands
    if failed == len(parts):
        raise ModelBrokenError(parts[0].rows[0]["error"])
    return join_hands(shard, *parts)


def _labelled(shard: Shard, hands: dict[str, Any], checkpoint: str) -> Shard:
    for row in shard.hand_rows:
        shard.rows[row] |= {"status": "ok", "checkpoint": checkpoint}
    labelled = Shard(shard.rows, shard.hand_rows, hands=hands)
    drop_not_finite(labelled)
    return labelled


def drop_not_finite(shard: Shard) -> None:
    """Drop labels with a NaN or an infinite number, in place; their rows become `failed`."""
    is_finite = finite_rows(shard.hands, len(shard.hand_rows))
    if is_finite.all():
        return
    for row, keep in zip(shard.hand_rows, is_finite, strict=True):
        if not keep:
            outcome = without_hand("not_finite", "the prediction holds a number that is NaN or infinite")
            shard.rows[row] |= outcome | {"checkpoint": None}
    shard.hand_rows = [row for row, keep in zip(shard.hand_rows, is_finite, strict=True) if keep]
    shard.hands = rows_of(shard.hands, is_finite) if shard.hand_rows else {}


def _without_labels(shard: Shard, error: Exception) -> Shard:
    for row in shard.hand_rows:
        shard.rows[row] |= without_hand("internal_error", one_line(error))
    return Shard(shard.rows)


def shard_table(
    shard: Shard, schema: pa.Schema, finish_shard: Callable[[Shard], None] | None = None
) -> pa.Table:
    """Return the table of a shard's label file, after `together` has seen all its hands."""
    if shard.parts:
        return pa.concat_tables([shard_table(part, schema) for part in shard.parts])
    if shard.file:
        with opened_label_file(shard.file) as opened:
            return opened.read(use_threads=False)
    if finish_shard is not None and shard.hands:
        finish_shard(shard)
    return labels_to_table(shard.rows, shard.hands, shard.hand_rows, schema)


def one_line(error: Exception) -> str:
    """Format an error for the `error` column: type and message on one line of at most 300 characters."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
