"""Expected outcomes of files and lists, shared by all parts of the corpus."""

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
#: Outcomes of a damaged header, which may claim anything.
BAD_HEADER = DAMAGED | {"unsupported", "too_large", "too_small"}
NO_PHOTO = frozenset({"not_a_photo"})
OTHER_FORMAT = frozenset({"unsupported"})
TOO_LARGE = frozenset({"too_large"})
TOO_SMALL = frozenset({"too_small"})


class Expected(NamedTuple):
    """The expected row of one input."""

    kind: str  # its line in the table
    outcomes: frozenset[str]  # "ok" or reasons; any of them is right
    size: tuple[int, int] | None = None  # width and height of an ok row, if known
    optional: bool = False  # whether the row may be missing
    duplicate: bool = False
    times: int = 1  # number of rows with this id; all but the first are duplicates


class File(NamedTuple):
    """A photo to write, or a file like one."""

    kind: str
    name: str
    data: bytes
    outcomes: frozenset[str]
    size: tuple[int, int] | None = None


@dataclass
class Run:
    """A source to label. Without expected rows, it must raise a UserError."""

    name: str
    source: Path
    expected: dict[str, Expected] = field(default_factory=dict)  # by image_id
