"""Outcomes of photos, counted from the rows of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any


def outcome_of(row: dict[str, Any]) -> str:
    """Return the outcome of a row's photo: `ok`, or `status: reason`."""
    return row["status"] if row["status"] == "ok" else f"{row['status']}: {row['reason']}"


def count_outcomes(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Count photos per outcome. A photo's further hands are not counted."""
    return dict(Counter(outcome_of(row) for row in rows if row["hand_index"] <= 0))
