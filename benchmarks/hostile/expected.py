"""What a file or a list is expected to become: what all parts of the corpus share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

OK = frozenset({"ok"})
MISSING = frozenset({"missing"})
EMPTY = frozenset({"empty"})
BAD_ROW = frozenset({"bad_row"})
CUT = frozenset({"truncated"})
DAMAGED = frozenset({"corrupt", "truncated"})
#: A damaged header may claim anything.
BAD_HEADER = DAMAGED | {"unsupported", "too_large", "too_small"}
NO_PHOTO = frozenset({"not_a_photo"})
OTHER_FORMAT = frozenset({"unsupported"})
TOO_LARGE = frozenset({"too_large"})
TOO_SMALL = frozenset({"too_small"})


class Expected(NamedTuple):
    """The row of one input."""

    kind: str  # its line of the table
    outcomes: frozenset[str]  # "ok" or reasons, any of which is right
    size: tuple[int, int] | None = None  # width and height, where they are known and it is ok
    optional: bool = False  # whether no row is right, too
    duplicate: bool = False
    times: int = 1  # how many rows have this id, all but the first of them duplicates


class File(NamedTuple):
    """A photo to write, or something like one."""

    kind: str
    name: str
    data: bytes
    outcomes: frozenset[str]
    size: tuple[int, int] | None = None


@dataclass
class Run:
    """A source to label. Without expected rows, it must be refused as a user's mistake."""

    name: str
    source: Path
    expected: dict[str, Expected] = field(default_factory=dict)  # by image_id
