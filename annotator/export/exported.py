"""The result of an export."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Exported:
    """Counts of an export, and remarks for the user."""

    hands: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # hands or photos, by reason
    notes: list[str] = field(default_factory=list)  # one line each
