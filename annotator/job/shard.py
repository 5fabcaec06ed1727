"""A shard between its stages: rows of all entries, and crops or label columns of their hands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from annotator.labels.arrays import joined_columns
from annotator.photos.crops import Crops


@dataclass
class Shard:
    """Rows for every entry, and crops or labels of the hands among them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    hand_rows: list[int] = field(default_factory=list)  # row index of each crop, then of each labelled hand
    crops: Crops | None = None  # None after prediction
    hands: dict[str, Any] = field(default_factory=dict)  # label columns over hands
    file: str | None = (
        None  # path or URL of a label file that holds all of it already, in the label folder's `_tmp/`
    )
    parts: list[Shard] = field(default_factory=list)  # instead of all else, if one of them is a file

    @staticmethod
    def join(parts: Sequence[Shard]) -> Shard:
        """Join pieces that were decoded separately, in order."""
        if any(part.file or part.parts for part in parts):
            return Shard(parts=list(parts))
        joined = Shard()
        for part in parts:
            joined.hand_rows += [len(joined.rows) + row for row in part.hand_rows]
            joined.rows += part.rows
        crops = [part.crops for part in parts if part.crops is not None]
        joined.crops = Crops.stack(crops) if crops else None
        joined.hands = joined_columns([part.hands for part in parts if part.hands])
        return joined


def join_hands(shard: Shard, *parts: Shard) -> Shard:
    """Join a shard whose hands were labelled one by one; `parts` have one row each, in the shard's order."""
    for row, part in zip(shard.hand_rows, parts, strict=True):
        shard.rows[row] = part.rows[0]
    good = [row for row, part in zip(shard.hand_rows, parts, strict=True) if part.hands]
    return Shard(shard.rows, good, hands=joined_columns([part.hands for part in parts if part.hands]))
