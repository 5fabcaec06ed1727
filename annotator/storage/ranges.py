"""Read a file in few requests: ranges are announced first, and close ranges are fetched together."""

from __future__ import annotations

from collections.abc import Iterable

from annotator.storage.files import is_local, read_range
from annotator.storage.remote import RemoteFile

Range = tuple[int, int]  # first byte, last byte plus one

#: Bytes of the first request to a store: a label file's footer and the scalar columns before it.
TAIL_BYTES = 1 << 18

#: Gap between two ranges in a store up to which one request is cheaper than two.
GAP_BYTES = 1 << 20


class RangedFile(RemoteFile):
    """A file of a known size; fetched ranges are read from memory, other reads are separate requests."""

    def __init__(self, url: str, size: int) -> None:
        """Open the file; of a store, fetch its end."""
        super().__init__(url, size)
        self._gap = 0 if is_local(url) else GAP_BYTES
        self._parts: list[tuple[int, bytes]] = []
        if not is_local(url):
            self.fetch([(max(0, size - TAIL_BYTES), size)])

    def fetch(self, ranges: Iterable[Range]) -> None:
        """Fetch the missing parts of some ranges."""
        missing = [part for wanted in merged(ranges, self._gap) for part in self._missing(wanted)]
        for start, end in merged(missing, self._gap):
            self._parts.append((start, read_range(self._url, start, end - start)))

    def _missing(self, wanted: Range) -> list[Range]:
        start, end = wanted
        gaps = []
        for first, data in sorted(self._parts, key=lambda part: part[0]):
            if start < first:
                gaps.append((start, min(first, end)))
            start = max(start, first + len(data))
        return [part for part in [*gaps, (start, end)] if part[0] < part[1]]

    def _read(self, start: int, end: int) -> bytes:
        held = self._held(start, end)
        return read_range(self._url, start, end - start) if held is None else held

    def _held(self, start: int, end: int) -> bytes | None:
        joined = b""
        while start < end:
            part = next((p for p in self._parts if p[0] <= start < p[0] + len(p[1])), None)
            if part is None:
                return None
            joined += part[1][start - part[0] : end - part[0]]
            start = part[0] + len(part[1])
        return joined


def merged(ranges: Iterable[Range], gap: int) -> list[Range]:
    """Join ranges with no more than `gap` bytes between them; in order."""
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if joined and start - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined
