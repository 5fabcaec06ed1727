"""What an export tells of itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Exported:
    """What was written."""

    hands: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # hands or photos, by why
    notes: list[str] = field(default_factory=list)  # what else a user should know, a line each
