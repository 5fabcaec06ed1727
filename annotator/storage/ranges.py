"""A file read in few requests: what will be wanted is named first, and near ranges are fetched as one."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from annotator.storage.files import is_local, read_range

Range = tuple[int, int]  # first byte, and the one after the last

#: Of a store, fetched with the first request: a label file's footer and the scalar columns that precede it.
TAIL_BYTES = 1 << 18

#: Of a store, bytes between two ranges that cost less than a request of their own.
GAP_BYTES = 1 << 20


class RangedFile(io.RawIOBase):
    """A file of a known size; what `fetch` brought is read from memory, anything else is a request of its own."""

    def __init__(self, url: str, size: int) -> None:
        """Fetch nothing yet, but for the end of a store's file."""
        self._url, self._size, self._position = url, size, 0
        self._gap = 0 if is_local(url) else GAP_BYTES
        self._parts: list[tuple[int, bytes]] = []
        if not is_local(url):
            self.fetch([(max(0, size - TAIL_BYTES), size)])

    def fetch(self, ranges: Iterable[Range]) -> None:
        """Fetch what is missing of some ranges."""
        missing = [part for wanted in merged(ranges, self._gap) for part in self._missing(wanted)]
        for start, end in merged(missing, self._gap):
            self._parts.append((start, read_range(self._url, start, end - start)))

    def _missing(self, wanted: Range) -> list[Range]:
        start, end = wanted
        left = []
        for first, data in sorted(self._parts, key=lambda part: part[0]):
            if start < first:
                left.append((start, min(first, end)))
            start = max(start, first + len(data))
        return [part for part in [*left, (start, end)] if part[0] < part[1]]

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As for any file."""
        self._position = offset + {0: 0, 1: self._position, 2: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """As for any file; all that is asked for, unless the file ends."""
        start, end = self._position, min(self._position + len(buffer), self._size)
        if end <= start:
            return 0
        data = self._held(start, end)
        if data is None:
            data = read_range(self._url, start, end - start)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _held(self, start: int, end: int) -> bytes | None:
        found = b""
        while start < end:
            part = next((p for p in self._parts if p[0] <= start < p[0] + len(p[1])), None)
            if part is None:
                return None
            found += part[1][start - part[0] : end - part[0]]
            start = part[0] + len(part[1])
        return found


def merged(ranges: Iterable[Range], gap: int) -> list[Range]:
    """Join ranges with no more than `gap` bytes between them; in order."""
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if joined and start - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined
