"""The interface of every source of photos: an ordered, repeatable stream of entries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from annotator.sources.entry import Entry


class Source(ABC):
    """A stream of entries in increasing order of `key`, not held in memory."""

    place: str  # path or URL in the run's settings
    root: str | None = None  # the folder that holds the photos, if there is one

    def __init__(self) -> None:
        self.columns: dict[str, pa.DataType] = {}  # columns in the `extra` of its entries
        self.reset_skipped()

    @abstractmethod
    def __iter__(self) -> Iterator[Entry]:
        """Yield all entries."""

    @abstractmethod
    def key(self, entry: Entry) -> tuple[Any, ...]:
        """Return the sort key of an entry; keys of an earlier pass over the source stay comparable."""

    @contextmanager
    def renewing(self) -> Iterator[Callable[[Entry], Entry]]:
        """Yield a function that updates an entry of an earlier pass with data beside the photos, such as boxes."""
        yield lambda entry: entry

    def skip(self, name: str) -> None:
        """Record a file that is not a photo."""
        self.skipped_count += 1
        if len(self.skipped) < 5:
            self.skipped.append(name)

    def reset_skipped(self) -> None:
        """Reset the record of skipped files."""
        self.skipped: list[str] = []
        self.skipped_count = 0
