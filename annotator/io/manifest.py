"""The manifest: which entry belongs to which shard, written once and never changed.

A shard is the unit of work, of output and of retry: a fixed list of entries whose labels are one file,
`data/shard-NNNNNNN.parquet`. That file's appearance commits the shard, so resuming is listing a folder, and
an entry is in exactly one shard for good, whatever is later added to the source. The manifest lies in
`LABELS/_entries/`: each part is written whole, one line a shard (JSON), and a run that finds new entries adds
a part.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from annotator.errors import UserError
from annotator.io.sources import Entry
from annotator.io.storage import join, names_in, read_range, read_whole, write_whole

FOLDER = "_entries"


@dataclass(frozen=True)
class ShardRef:
    """Where a shard's line is in the manifest: small enough to hold for every pending shard."""

    number: int
    part: str
    start: int
    length: int

    @property
    def file_name(self) -> str:
        """The label file whose existence says that the shard is done."""
        return f"shard-{self.number:07d}.parquet"


class Manifest:
    """The manifest of one label folder (a path or URL)."""

    def __init__(self, labels: str) -> None:
        self.folder = join(labels, FOLDER)
        self.refs: list[ShardRef] = []
        self.entry_count = 0
        self._known: set[str] = set()
        for part in sorted(names_in(self.folder)):
            if part.endswith(".jsonl"):
                self._take(part, read_whole(join(self.folder, part)) or b"")

    def add(self, entries: Iterable[Entry], shard_size: int) -> int:
        """Give entries that are new a shard, in order; returns how many were new."""
        new = (entry for entry in entries if entry.id not in self._known)
        part = f"part-{len({ref.part for ref in self.refs}):05d}.jsonl"
        lines = [
            json.dumps({"shard": number, "entries": [asdict(entry) for entry in shard]})
            for number, shard in enumerate(_chunks(new, shard_size), start=len(self.refs))
        ]
        if not lines:
            return 0
        before = self.entry_count
        data = ("\n".join(lines) + "\n").encode()
        write_whole(join(self.folder, part), data)
        self._take(part, data)
        return self.entry_count - before

    def pending(self, done_files: set[str]) -> list[ShardRef]:
        """The shards without a label file."""
        return [ref for ref in self.refs if ref.file_name not in done_files]

    def _take(self, part: str, data: bytes) -> None:
        start = 0
        for line in data.splitlines(keepends=True):
            try:
                shard = json.loads(line)
                ids = [entry["id"] for entry in shard["entries"]]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"'{join(self.folder, part)}' is damaged: give a new label folder") from None
            if shard["shard"] != len(self.refs):
                raise UserError(
                    f"a part of '{self.folder}' before {part} is missing: give a new label folder"
                )
            self.refs.append(ShardRef(shard["shard"], part, start, len(line)))
            self._known.update(ids)
            self.entry_count += len(ids)
            start += len(line)


def read_shard(labels: str, ref: ShardRef) -> list[Entry]:
    """The entries of one shard."""
    line = read_range(join(labels, FOLDER, ref.part), ref.start, ref.length)
    return [Entry(**entry) for entry in json.loads(line)["entries"]]


def _chunks(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
    for entry in entries:
        chunk.append(entry)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
