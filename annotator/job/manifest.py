"""The manifest: which entry belongs to which shard, written while the source is listed and never changed.

A shard is the unit of work, of output and of retry: a fixed list of entries whose labels are one file,
`data/shard-NNNNNNN.parquet`. That file's appearance commits the shard, so resuming is listing a folder, and an
entry is in exactly one shard for good, whatever is later added to the source.

The manifest lies in `LABELS/_entries/`, in parts of some shards each, one line a shard (JSON). A part is written whole
before any of its shards is worked on. Each run that finds new entries writes parts of a new generation; a source gives
its entries in an order of their keys, so each generation is in that order, and what is new is found by walking source
and generations side by side: nothing of either is held in memory.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from annotator.errors import UserError
from annotator.sources.entry import Entry, dumps
from annotator.sources.source import Source
from annotator.storage.files import join, names_in, read_whole, write_whole

FOLDER = "_entries"

#: The largest part. Parts double up to it, so that work starts with the first shard and a collection has few parts.
PART_SHARDS = 16
PART_ENTRIES = 1 << 12

_PART = re.compile(r"part-(\d{4,})-(\d{6,})\.jsonl")
_SHARD_FILE = re.compile(r"shard-(\d{7,})\.parquet")


@dataclass(frozen=True)
class PlannedShard:
    """A shard and its entries."""

    number: int
    entries: list[Entry]
    among: list[str] | None = None  # ids of all its entries, where only some are to be done again


def shard_file_name(number: int) -> str:
    """The label file of a shard."""
    return f"shard-{number:07d}.parquet"


class DoneShards:
    """Which shards have a label file: a byte each, whatever the collection's size."""

    def __init__(self, labels: str) -> None:
        """List the label files.

        Raises:
            UserError: there is a file that no run of ours wrote.
        """
        self._flags = bytearray()
        self.count = 0
        for name in names_in(join(labels, "data")):
            if name.endswith(".parquet") and not name.startswith("."):
                found = _SHARD_FILE.fullmatch(name)
                if found is None:
                    raise UserError(
                        f"'{labels}/data' holds {name}, which no run made: move it away, or give a new folder"
                    )
                self.add(int(found[1]))

    def add(self, number: int) -> None:
        """Note a shard as done."""
        if number >= len(self._flags):
            self._flags.extend(bytes(number + 1 - len(self._flags)))
        self.count += not self._flags[number]
        self._flags[number] = 1

    def __contains__(self, number: int) -> bool:
        return number < len(self._flags) and bool(self._flags[number])

    def highest(self) -> int:
        """One more than the highest number; 0 where there is none."""
        return self._flags.rfind(1) + 1

    def __iter__(self) -> Iterator[int]:
        return (number for number, flag in enumerate(self._flags) if flag)


class Manifest:
    """The manifest of one label folder (a path or URL)."""

    def __init__(self, labels: str, confirm: Callable[[], None] = lambda: None) -> None:
        """Find its parts.

        Args:
            labels: the label folder.
            confirm: called before a part is written; raises where this run may not write any more.

        Raises:
            UserError: one is missing.
        """
        self.folder, self._confirm = join(labels, FOLDER), confirm
        self.shard_count = 0  # of the parts read or written so far
        self.photo_count = 0
        self._parts: list[tuple[int, int, str]] = []
        for name in names_in(self.folder):
            if found := _PART.fullmatch(name):
                self._parts.append((int(found[1]), int(found[2]), name))
        self._parts.sort()
        if [number for _, number, _ in self._parts] != list(range(len(self._parts))):
            raise UserError(f"a part of '{self.folder}' is missing: give a new label folder")

    def all(self) -> Iterator[PlannedShard]:
        """The shards that were planned; counts them."""
        return (PlannedShard(number, entries()) for number, _, entries in self._counted())

    def counts(self) -> Iterator[tuple[int, int]]:
        """How many photos each shard has that was planned; counts them."""
        return ((number, count) for number, count, _ in self._counted())

    def _counted(self) -> Iterator[tuple[int, int, Callable[[], list[Entry]]]]:
        self.shard_count = self.photo_count = 0
        for _, _, name in self._parts:
            for line in self._lines(name):
                if line[0] != self.shard_count:
                    raise self._damaged(name)
                self.shard_count += 1
                self.photo_count += line[1]
                yield line

    def pending(self, done: DoneShards) -> Iterator[PlannedShard]:
        """The shards without a label file among those that earlier runs planned; counts all of them.

        Raises:
            UserError: a part is damaged, or there are label files that it does not know.
        """
        for number, _, entries in self._counted():
            if number not in done:
                yield PlannedShard(number, entries())
        if done.highest() > self.shard_count:
            raise UserError(
                f"there are labels of shard {done.highest() - 1}, which '{self.folder}' does not know: "
                "give a new folder"
            )

    def new(self, source: Source, shard_size: int) -> Iterator[PlannedShard]:
        """Shards of the entries that no earlier run planned, each of them noted before it is given.

        Only after `pending` has been walked to its end.

        Raises:
            UserError: the source gives other entries in place of those that were planned.
        """
        generation = self._parts[-1][0] + 1 if self._parts else 0
        part: list[PlannedShard] = []
        largest = 1
        for entries in _chunks(self.unplanned(source), shard_size):
            part.append(PlannedShard(self.shard_count + len(part), entries))
            if len(part) >= largest or len(part) * shard_size >= PART_ENTRIES:
                yield from self._note(part, generation)
                part, largest = [], min(2 * largest, PART_SHARDS)
        yield from self._note(part, generation)

    def unplanned(self, source: Source) -> Iterator[Entry]:
        """The entries of a source that have no shard; raises as `new` does."""
        generations = groupby(list(self._parts), lambda part: part[0])
        known = [self._generation([name for _, _, name in parts]) for _, parts in generations]
        return _unknown(source, heapq.merge(*known, key=source.key))

    def _note(self, part: list[PlannedShard], generation: int) -> list[PlannedShard]:
        if not part:
            return part
        lines = [
            f'{{"shard":{s.number},"count":{_photos(s.entries)},"entries":{dumps(s.entries)}}}' for s in part
        ]
        name = f"part-{generation:04d}-{len(self._parts):06d}.jsonl"
        self._confirm()
        write_whole(join(self.folder, name), ("\n".join(lines) + "\n").encode())
        self._parts.append((generation, len(self._parts), name))
        self.shard_count += len(part)
        self.photo_count += sum(_photos(shard.entries) for shard in part)
        return part

    def _generation(self, names: list[str]) -> Iterator[Entry]:
        for name in names:
            for _, _, entries in self._lines(name):
                yield from entries()

    def _lines(self, name: str) -> Iterator[tuple[int, int, Callable[[], list[Entry]]]]:
        """Of each line of a part: the shard's number, how many photos it has, and how to get its entries."""
        damaged = self._damaged(name)
        data = read_whole(join(self.folder, name))
        if data is None or not data.endswith(b"\n"):
            raise damaged
        for line in data.splitlines():
            head = re.match(rb'{"shard":(\d+),"count":(\d+),"entries":', line)
            if head is None:
                raise damaged

            def entries(text: bytes = line[head.end() : -1], count: int = int(head[2])) -> list[Entry]:
                try:
                    found = [Entry.from_json(values) for values in json.loads(text)]
                except (ValueError, TypeError, AttributeError):
                    raise damaged from None
                if _photos(found) != count:
                    raise damaged
                return found

            yield int(head[1]), int(head[2]), entries

    def _damaged(self, name: str) -> UserError:
        return UserError(f"'{join(self.folder, name)}' is damaged: give a new label folder")


def _photos(entries: list[Entry]) -> int:
    """How many photos entries are of: one that adds a hand to an earlier photo is none of its own."""
    return sum(entry.photos for entry in entries if not entry.first_hand)


def _unknown(source: Source, known: Iterator[Entry]) -> Iterator[Entry]:
    """The source's entries without those that are known: both come in the order of their keys."""
    nothing: Any = None
    waiting = next(known, nothing)
    for entry in source:
        key = source.key(entry)
        # What has gone from the source keeps its row.
        while waiting is not nothing and source.key(waiting) < key:
            waiting = next(known, nothing)
        if waiting is nothing or source.key(waiting) != key:
            yield entry
            continue
        if (waiting.id, waiting.path) != (entry.id, entry.path):
            raise UserError(
                f"'{source.place}' has changed: its entry {key[-1]} was {waiting.uri!r} and is now {entry.uri!r}; "
                "only add to its end, or give a new label folder"
            )
        waiting = next(known, nothing)


def _chunks(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
    for entry in entries:
        chunk.append(entry)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
