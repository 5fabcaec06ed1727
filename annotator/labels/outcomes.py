"""Outcomes of photos, counted from the rows of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any


def count_outcomes(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Count photos per outcome: `ok`, or `status: reason`. A photo's further hands are not counted."""
    return dict(
        Counter(
            row["status"] if row["status"] == "ok" else f"{row['status']}: {row['reason']}"
            for row in rows
            if row["hand_index"] <= 0
        )
    )
