"""The manifest: assigns each entry to a shard while the source is listed. Assignments never change.

A shard is the unit of work, output and retry: a fixed list of entries whose labels are one file,
`data/shard-NNNNNNN.parquet`. The appearance of that file commits the shard, so resuming means listing a folder.
An entry stays in its shard, also when the source grows.

The manifest is in `LABELS/_entries/`, in parts of some shards each, one JSON line per shard. A part is written
completely before work on its shards starts. Each run with new entries writes parts of a new generation. A source
yields its entries in the order of their keys, and so does each generation. New entries are located by walking source
and generations side by side, without holding either in memory.
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
from annotator.labels.folder import ENTRIES_FOLDER
from annotator.sources.entry import Entry, entries_to_json
from annotator.sources.source import Source
from annotator.storage.files import join, names_in, read_if_exists, write_atomic

#: Maximum size of a part. Parts double up to it: work starts with the first shard, and a collection has few parts.
PART_SHARDS = 16
PART_ENTRIES = 1 << 12

_PART = re.compile(r"part-(\d{4,})-(\d{6,})\.jsonl")
_SHARD_FILE = re.compile(r"shard-(\d{7,})\.parquet")


@dataclass(frozen=True)
class PlannedShard:
    """A shard and its entries."""

    number: int
    entries: list[Entry]
    all_ids: list[str] | None = None  # of all entries of the shard, if only some are labelled again


def shard_file_name(number: int) -> str:
    """Return the name of a shard's label file."""
    return f"shard-{number:07d}.parquet"


class DoneShards:
    """The set of shards with a label file, at one byte per shard."""

    def __init__(self, labels: str) -> None:
        """List the label files.

        Raises:
            UserError: a file there was not written by a run.
        """
        self._flags = bytearray()
        self.count = 0
        for name in names_in(join(labels, "data")):
            if name.endswith(".parquet") and not name.startswith("."):
                match = _SHARD_FILE.fullmatch(name)
                if match is None:
                    raise UserError(
                        f"'{labels}/data' holds {name}, which is not a label file: move it away, or give a new folder"
                    )
                self.add(int(match[1]))

    def add(self, number: int) -> None:
        """Mark a shard as done."""
        if number >= len(self._flags):
            self._flags.extend(bytes(number + 1 - len(self._flags)))
        self.count += not self._flags[number]
        self._flags[number] = 1

    def __contains__(self, number: int) -> bool:
        return number < len(self._flags) and bool(self._flags[number])

    def highest(self) -> int:
        """Return the highest shard number plus one, 0 for an empty set."""
        return self._flags.rfind(1) + 1

    def __iter__(self) -> Iterator[int]:
        return (number for number, flag in enumerate(self._flags) if flag)


class Manifest:
    """The manifest of one label set (a path or URL)."""

    def __init__(self, labels: str, confirm: Callable[[], None] = lambda: None) -> None:
        """List the parts.

        Args:
            labels: the label set.
            confirm: called before a part is written; raises if this run must not write any more.

        Raises:
            UserError: a part is missing.
        """
        self.folder, self._confirm = join(labels, ENTRIES_FOLDER), confirm
        self.shard_count = 0  # in the parts read or written so far
        self.photo_count = 0
        self._parts: list[tuple[int, int, str]] = []
        for name in names_in(self.folder):
            if found := _PART.fullmatch(name):
                self._parts.append((int(found[1]), int(found[2]), name))
        self._parts.sort()
        if [number for _, number, _ in self._parts] != list(range(len(self._parts))):
            raise UserError(f"a part of '{self.folder}' is missing: give a new label set")

    def all(self) -> Iterator[PlannedShard]:
        """Yield all planned shards, and count them."""
        return (PlannedShard(number, entries()) for number, _, entries in self._counted())

    def counts(self) -> Iterator[tuple[int, int]]:
        """Yield number and photo count of all planned shards, and count them."""
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
        """Yield planned shards without a label file, and count all planned shards.

        Raises:
            UserError: a part is damaged, or a label file belongs to no planned shard.
        """
        for number, _, entries in self._counted():
            if number not in done:
                yield PlannedShard(number, entries())
        if done.highest() > self.shard_count:
            raise UserError(
                f"shard {done.highest() - 1} has labels but is missing in '{self.folder}': give a new folder"
            )

    def new(self, source: Source, shard_size: int) -> Iterator[PlannedShard]:
        """Plan the entries without a shard; yield each new shard after it is recorded.

        Call it after `pending` is exhausted.

        Raises:
            UserError: the source yields other entries in place of planned ones.
        """
        generation = self._parts[-1][0] + 1 if self._parts else 0
        part: list[PlannedShard] = []
        largest = 1
        for entries in _chunks(self.unplanned(source), shard_size):
            part.append(PlannedShard(self.shard_count + len(part), entries))
            if len(part) >= largest or len(part) * shard_size >= PART_ENTRIES:
                yield from self._record(part, generation)
                part, largest = [], min(2 * largest, PART_SHARDS)
        yield from self._record(part, generation)

    def unplanned(self, source: Source) -> Iterator[Entry]:
        """Yield the entries of a source without a shard; raises as `new` does."""
        generations = groupby(list(self._parts), lambda part: part[0])
        known = [self._generation([name for _, _, name in parts]) for _, parts in generations]
        return _new_entries(source, heapq.merge(*known, key=source.key))

    def _record(self, part: list[PlannedShard], generation: int) -> list[PlannedShard]:
        if not part:
            return part
        lines = [
            f'{{"shard":{s.number},"count":{_photos(s.entries)},"entries":{entries_to_json(s.entries)}}}'
            for s in part
        ]
        name = f"part-{generation:04d}-{len(self._parts):06d}.jsonl"
        self._confirm()
        write_atomic(join(self.folder, name), ("\n".join(lines) + "\n").encode())
        self._parts.append((generation, len(self._parts), name))
        self.shard_count += len(part)
        self.photo_count += sum(_photos(shard.entries) for shard in part)
        return part

    def _generation(self, names: list[str]) -> Iterator[Entry]:
        for name in names:
            for _, _, entries in self._lines(name):
                yield from entries()

    def _lines(self, name: str) -> Iterator[tuple[int, int, Callable[[], list[Entry]]]]:
        """Yield per line of a part: shard number, photo count, and a function that parses the entries."""
        damaged = self._damaged(name)
        data = read_if_exists(join(self.folder, name))
        if data is None or not data.endswith(b"\n"):
            raise damaged
        for line in data.splitlines():
            head = re.match(rb'{"shard":(\d+),"count":(\d+),"entries":', line)
            if head is None:
                raise damaged

            def entries(text: bytes = line[head.end() : -1], count: int = int(head[2])) -> list[Entry]:
                try:
                    parsed = [Entry.from_json(values) for values in json.loads(text)]
                except (ValueError, TypeError, AttributeError):
                    raise damaged from None
                if _photos(parsed) != count:
                    raise damaged
                return parsed

            yield int(head[1]), int(head[2]), entries

    def _damaged(self, name: str) -> UserError:
        return UserError(f"'{join(self.folder, name)}' is damaged: give a new label set")


def _photos(entries: list[Entry]) -> int:
    """Count the photos of entries; an entry that adds a hand to an earlier photo does not count."""
    return sum(entry.photos for entry in entries if not entry.first_hand)


def _new_entries(source: Source, known: Iterator[Entry]) -> Iterator[Entry]:
    """Yield the source's entries that are not `known`; both are in the order of their keys."""
    nothing: Any = None
    waiting = next(known, nothing)
    for entry in source:
        key = source.key(entry)
        # An entry that is no longer in the source keeps its row.
        while waiting is not nothing and source.key(waiting) < key:
            waiting = next(known, nothing)
        if waiting is nothing or source.key(waiting) != key:
            yield entry
            continue
        if (waiting.id, waiting.path) != (entry.id, entry.path):
            raise UserError(
                f"'{source.place}' has changed: its entry {key[-1]} was {waiting.uri!r} and is now {entry.uri!r}; "
                "only append to it, or give a new label set"
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
