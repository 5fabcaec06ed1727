"""Rows without labels: the values common to all rows of an entry, and the outcomes of errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from annotator.job.shard import Shard
from annotator.labels.finite import finite_rows, rows_of
from annotator.labels.schema import without_hand
from annotator.photos.errors import PhotoError
from annotator.sources.entry import Entry


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
    """Return rows of entries that crashed every decoder."""
    outcome = without_hand("crashed", "every process that decoded this photo crashed")
    return Shard([first_row(entry) | outcome for entry in entries])


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


def one_line(error: Exception) -> str:
    """Format an error for the `error` column: type and message on one line of at most 300 characters."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
