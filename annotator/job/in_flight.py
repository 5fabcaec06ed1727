"""The dispatcher's records: shards in flight, and their pieces."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from annotator.job.failures import ShardFailures
from annotator.job.manifest import PlannedShard
from annotator.sources.entry import Entry


@dataclass(eq=False)
class ShardInFlight:
    """A shard between its first and its last stage."""

    shard: PlannedShard
    pieces: list[Piece] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)  # by cause
    failures: ShardFailures = field(default_factory=ShardFailures)
    began: float = 0.0  # start of its last stage, time.time()
    data: Any = None  # reference to the result of its last stage
    hands: int = 0  # to be labelled

    def cut(self, size: int) -> list[Piece]:
        """Cut the entries into pieces of `size` entries, to be decoded again."""
        entries = self.shard.entries
        self.data = None
        self.pieces = [Piece(self, entries[k : k + size]) for k in range(0, len(entries), size)]
        return self.pieces


@dataclass(eq=False)
class Piece:
    """Entries that one task decodes."""

    in_flight: ShardInFlight
    entries: list[Entry]
    crashes: int = 0  # of its decoders
    is_decoded: bool = False
    data: Any = None  # reference to the decoded piece
    hands: int = 0  # to be labelled
