"""The stations a shard passes: decode, predict, write. Plain functions on one shard; they know no engine.

    ShardRef --decode_shard--> DecodedShard --predict_shard--> LabelledShard --write_shard--> ShardReport

Every entry leaves as a row, whatever became of it.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from annotator.detect.hands import ENOUGH_PX, NO_HAND_FOUND, HandDetector
from annotator.io.crops import Crops, crop_photo
from annotator.io.decode import PhotoError, decode_photo, read_photo
from annotator.io.manifest import ShardRef, read_shard
from annotator.io.schema import encode_table, labels_to_table
from annotator.io.storage import join, write_whole

if TYPE_CHECKING:  # decoders and writers start seconds sooner without torch
    from annotator.predictor import Predictor, Side


@dataclass
class DecodedShard:
    """Rows for every entry of a shard, and the crops of those that could be read."""

    ref: ShardRef
    rows: list[dict[str, Any]]
    crops: Crops | None  # None where no entry could be read
    hand_rows: list[int]  # the row of each crop


@dataclass
class LabelledShard:
    """A decoded shard whose crops have become label columns."""

    ref: ShardRef
    rows: list[dict[str, Any]]
    hands: dict[str, Any]
    hand_rows: list[int]
    began: float  # when its prediction began, time.time()


@dataclass
class ShardReport:
    """What became of a shard's entries."""

    shard: int
    outcomes: dict[str, int]  # "ok", or "status: reason"
    began: float


def decode_shard(
    labels: str, ref: ShardRef, crop_px: int, find: Callable[[], HandDetector] | None = None
) -> DecodedShard:
    """Read and decode every photo of a shard and cut its hands; one that can't be read gets its row at once.

    Hands are those that the detector `find` gives sees; without, each photo is the crop around one.
    """
    rows: list[dict[str, Any]] = []
    cut: list[Crops] = []
    hand_rows: list[int] = []
    for entry in read_shard(labels, ref):
        row: dict[str, Any] = {"image_uri": entry.uri, "image_id": entry.id, "hand_index": -1}
        try:
            found = _hands(entry.path, crop_px, find)
        except PhotoError as error:
            row |= {"status": "unreadable", "reason": error.reason, "error": str(error)}
        except Exception as error:  # a defect of ours must cost one photo, not the run
            row |= {"status": "failed", "reason": "internal_error", "error": one_line(error)}
        else:
            row |= {"width": found.size_px[0], "height": found.size_px[1]}
            if found.crops:
                hand_rows += range(len(rows), len(rows) + len(found.crops))
                cut += found.crops
                row |= {"box_source": "detector" if find else "photo"}
                rows += [row | {"hand_index": index} for index in range(len(found.crops))]
                continue
            row |= NO_HAND_FOUND
        rows.append(row)
    return DecodedShard(ref, rows, Crops.stack(cut) if cut else None, hand_rows)


class _Found(NamedTuple):
    size_px: tuple[int, int]  # of the photo
    crops: list[Crops]  # of its hands, the largest first


def _hands(path: str, crop_px: int, find: Callable[[], HandDetector] | None) -> _Found:
    """The hands of one photo; raises as `read_photo` and `decode_photo` do."""
    if find is None:
        photo = decode_photo(read_photo(path), min_side_px=crop_px)
        crops = [crop_photo(photo.pixels, photo.width, photo.height, crop_px)]
    else:
        photo = decode_photo(read_photo(path), min_side_px=ENOUGH_PX)
        crops = [
            crop_photo(
                photo.pixels,
                photo.width,
                photo.height,
                crop_px,
                hand.box_xyxy.tolist(),
                right_score=hand.side_score if hand.is_right else 1 - hand.side_score,
            )
            for hand in find().find(photo.pixels, photo.width, photo.height)
        ]
    return _Found((photo.width, photo.height), crops)


def predict_shard(predictor: Predictor, shard: DecodedShard, side: Side) -> LabelledShard:
    """Label the crops of a shard."""
    began = time.time()
    hands: dict[str, Any] = {}
    if shard.crops is not None:
        try:
            hands = predictor.predict_crops(shard.crops, side)
        except Exception as error:
            for row in shard.hand_rows:
                shard.rows[row] |= {"status": "failed", "reason": "internal_error", "error": one_line(error)}
        else:
            for row in shard.hand_rows:
                shard.rows[row] |= {"status": "ok"}
    return LabelledShard(shard.ref, shard.rows, hands, shard.hand_rows if hands else [], began)


def write_shard(labels: str, shard: LabelledShard, schema: pa.Schema) -> ShardReport:
    """Write a shard's label file in one step: its appearance commits the shard."""
    table = labels_to_table(shard.rows, shard.hands, shard.hand_rows, schema)
    write_whole(join(labels, "data", shard.ref.file_name), encode_table(table), scratch=join(labels, "_tmp"))
    return ShardReport(shard.ref.number, count_outcomes(shard.rows), shard.began)


def packed(shard: Any) -> dict[str, Any]:
    """A shard as the one opaque value of an engine's row: Arrow would otherwise guess a schema for each anew."""
    return {"shard": pickle.dumps(shard, protocol=5)}


def unpacked(row: dict[str, Any]) -> Any:
    """The inverse of `packed`; only ever given what a station of the same run packed."""
    return pickle.loads(row["shard"])


def count_outcomes(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many photos ended in what: `ok`, or `status: reason`. A photo's second hand is not counted again."""
    return dict(
        Counter(
            row["status"] if row["status"] == "ok" else f"{row['status']}: {row['reason']}"
            for row in rows
            if row["hand_index"] <= 0
        )
    )


def one_line(error: Exception) -> str:
    """An error as a label's `error` column has it."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
