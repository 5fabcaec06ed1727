"""Which names came before, for lists of any length: on disk, a few bytes each, gone with the process."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b
from types import TracebackType


class Seen:
    """A set of names, by 64-bit hashes: one of 100 million is wrongly taken for known with a chance of 1 in 3,700."""

    def __enter__(self) -> Seen:
        # An unnamed database lives in a file of SQLite's own, which nobody has to remove.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("pragma journal_mode = off")
        self._database.execute("pragma synchronous = off")
        self._database.execute("pragma cache_size = -4096")
        self._database.execute("begin")
        self._database.execute("create table seen (name integer primary key, value integer)")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def again(self, name: str) -> bool:
        """Whether the name was given before."""
        return self.first(name, 0) is not None

    def first(self, name: str, value: int) -> int | None:
        """The value under which the name was given first; None, and this value kept, where it is new."""
        key = (_number(name),)
        added = self._database.execute("insert or ignore into seen values (?, ?)", (*key, value)).rowcount
        if added:
            return None
        (earlier,) = self._database.execute("select value from seen where name = ?", key).fetchone()
        return int(earlier)

    def count(self, name: str) -> int:
        """How often the name was counted before."""
        before = self.first(name, 1)
        if before is not None:
            self._database.execute("update seen set value = value + 1 where name = ?", (_number(name),))
        return before or 0


def _number(name: str) -> int:
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
