"""What every source of photos is: an ordered stream of entries that can be walked again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from annotator.sources.entry import Entry


class Source(ABC):
    """Entries in increasing order of `key`; nothing of them is held."""

    place: str  # as a run's settings name it
    root: str | None = None  # the folder that its photos lie below, where there is one

    def __init__(self) -> None:
        self.columns: dict[str, pa.DataType] = {}  # what its entries have in `extra`
        self.forget_skipped()

    @abstractmethod
    def __iter__(self) -> Iterator[Entry]:
        """All entries."""

    @abstractmethod
    def key(self, entry: Entry) -> tuple[Any, ...]:
        """What orders entries, those of an earlier walk among them."""

    @contextmanager
    def renewing(self) -> Iterator[Callable[[Entry], Entry]]:
        """Gives what brings an entry of an earlier walk up to date with what is known beside the photos."""
        yield lambda entry: entry

    def skip(self, name: str) -> None:
        """Note a file that is no photo."""
        self.skipped_count += 1
        if len(self.skipped) < 5:
            self.skipped.append(name)

    def forget_skipped(self) -> None:
        """Start to count anew."""
        self.skipped: list[str] = []
        self.skipped_count = 0
