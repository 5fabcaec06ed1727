"""An index of names for lists of any length: on disk, a few bytes per name, deleted when the process ends."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b
from types import TracebackType


class NameIndex:
    """A map from names to numbers, keyed by 64-bit hashes.

    With 100 million names, the chance that any two collide is 1 in 3,700.
    """

    def __enter__(self) -> NameIndex:
        # SQLite keeps an unnamed database in a temporary file and deletes it itself.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("pragma journal_mode = off")
        self._database.execute("pragma synchronous = off")
        self._database.execute("pragma cache_size = -4096")
        self._database.execute("begin")
        self._database.execute("create table names (name integer primary key, value integer)")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def is_repeat(self, name: str) -> bool:
        """Return whether the index has the name; add it if not."""
        return self.first_value(name, 0) is not None

    def first_value(self, name: str, value: int) -> int | None:
        """Return the stored value of a name; for a new name, store `value` and return None."""
        key = (_hash(name),)
        added = self._database.execute("insert or ignore into names values (?, ?)", (*key, value)).rowcount
        if added:
            return None
        (earlier,) = self._database.execute("select value from names where name = ?", key).fetchone()
        return int(earlier)

    def count(self, name: str) -> int:
        """Count the name once more, and return the count before."""
        before = self.first_value(name, 1)
        if before is not None:
            self._database.execute("update names set value = value + 1 where name = ?", (_hash(name),))
        return before or 0


def _hash(name: str) -> int:
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
