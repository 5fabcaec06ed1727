"""A list of photos: text, CSV, JSON lines or Parquet, a row a photo, with whatever else is known of it.

| column | names | type |
|---|---|---|
| where the photo is | `uri`, `image_uri`, `url`, `path`, `image` | text; relative ones are relative to the list |
| its own id | `id`, `image_id` | text or whole number |
| the hand's box | `box_xyxy`, or `x1`, `y1`, `x2`, `y2` (also with `_px`) | four numbers, photo pixels |
| which hand | `is_right`, or `handedness`, `side` | true/false, or left/right |
| focal length | `focal_px` | a number, pixels |

All others pass through to the labels, but those without a name: of CSV as text, of JSON lines by what their first
rows have. Text and CSV are UTF-8; bytes that are not may name files, and pass through as `\\xNN`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import UserError
from annotator.io.entry import Entry, Fault, ListedHand, plain, readable
from annotator.io.remote import shown
from annotator.io.schema import label_schema
from annotator.io.sources.seen import Seen
from annotator.io.sources.source import Source
from annotator.io.storage import is_local, join, local_path, open_file

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

#: What columns say, and the names, or sets of names, that a list may use for it.
_ROLES: dict[str, list[tuple[str, ...]]] = {
    "uri": [("uri",), ("image_uri",), ("url",), ("path",), ("image",)],
    "id": [("id",), ("image_id",)],
    "box": [("box_xyxy",), ("x1", "y1", "x2", "y2"), ("x1_px", "y1_px", "x2_px", "y2_px")],
    "right": [("is_right",), ("handedness",), ("side",)],
    "focal": [("focal_px",)],
}

_ROLE_NAMES = frozenset(name for choices in _ROLES.values() for choice in choices for name in choice)

#: What others call a box; one that passed through unseen would leave whole photos as crops.
_BOX_NAMES = ("box", "boxes", "bbox", "bboxes", "xyxy", "bbox_xyxy", "box_xyxy_px")

_SIDES = {"right": 1.0, "r": 1.0, "true": 1.0, "1": 1.0, "left": 0.0, "l": 0.0, "false": 0.0, "0": 0.0}

_Row = dict[str, Any]


class BadRowError(ValueError):
    """A row of a list that says something impossible, in one plain line."""


class ListSource(Source):
    """The rows of a list, in their order."""

    def __init__(self, path: str) -> None:
        """Look at the list's columns.

        Raises:
            UserError: it can't be read, has no column for the photo's place, or a column is of the wrong type.
        """
        super().__init__()
        self._path = _absolute(path) if is_local(path) else path
        self._folder = self._path.rsplit("/", 1)[0]
        self.place = readable(self._path)
        said = plain(shown(path))
        with _told(self._path):
            self._rows, self._types = _reader(self._path)
        self._roles = _roles(list(self._types), said)
        _check_types(self._types, self._roles, said)
        self._by_type = self._path.lower().endswith((".parquet", ".jsonl", ".ndjson"))
        self._passed = self._names_of_passed()
        self.columns = {to: _passed_type(self._types[name]) for name, to in self._passed.items()}
        self._late = _ROLE_NAMES - set(self._types)

    def _names_of_passed(self) -> dict[str, str]:
        """Columns that pass through, with the names they get: none is a label's, or another's."""
        used = {name for names in self._roles.values() for name in names}
        taken = set(label_schema(1).names) | set(self._types)
        names = {}
        for name in self._types:
            if name not in used:
                to = name
                while to in taken and (to != name or to in label_schema(1).names):
                    to = f"list_{to}"
                taken.add(to)
                names[name] = to
        return names

    @property
    def has_boxes(self) -> bool:
        """Whether it says where hands are."""
        return "box" in self._roles

    @property
    def has_ids(self) -> bool:
        """Whether it gives photos ids of their own."""
        return "id" in self._roles

    def key(self, entry: Entry) -> tuple[int]:
        """Rows come by number."""
        return (entry.order,)

    def __iter__(self) -> Iterator[Entry]:
        self.forget_skipped()
        with Seen() as seen:
            for _, entry in self.rows():
                # A given id and a uri are different kinds of names.
                again = [
                    bool(entry.path) and seen.again(f"u{entry.path}"),
                    self.has_ids and seen.again(f"i{entry.id}"),
                ]
                yield replace(entry, duplicate=True) if any(again) else entry

    def rows(self) -> Iterator[tuple[str, Entry]]:
        """Each row's own word for the photo's place, and its entry.

        Raises:
            UserError: the list can't be read to its end.
        """
        with _told(self._path):
            for number, row in enumerate(self._rows(self._path)):
                uri = self._uri(row)
                yield uri, self._entry(number, row, uri)

    def _uri(self, row: _Row) -> str:
        """The photo's place as the row has it; empty where it has none."""
        given = row.get(self._roles["uri"][0])
        if not isinstance(given, str):
            return ""
        return given if self._by_type else given.strip()

    def _entry(self, number: int, row: _Row, uri: str) -> Entry:
        elsewhere = not uri or "://" in uri or uri.startswith("/")
        entry = Entry(
            uri if elsewhere else join(self._folder, uri), readable(f"{number}:{uri}"), order=number
        )
        try:
            entry = replace(entry, id=self._id(row) or entry.id)
            if _BROKEN in row:
                raise BadRowError(row[_BROKEN])
            if late := next((name for name in self._late.intersection(row) if row[name] is not None), None):
                raise BadRowError(
                    f"this row has {late!r}, which is in none of the list's first {_FIRST_ROWS:,} rows: "
                    "give it in the first too, if only as null"
                )
            extra = {to: _passed(row.get(name), self.columns[to]) for name, to in self._passed.items()}
            entry = replace(entry, extra=extra)
            self._check_place(row, uri)
            return replace(entry, hands=self._hands(row), focal_px=self._focal(row))
        except BadRowError as error:
            return replace(entry, fault=Fault("bad_row", str(error)))

    def _check_place(self, row: _Row, uri: str) -> None:
        given = row.get(self._roles["uri"][0])
        if given is not None and not isinstance(given, str):
            raise BadRowError(f"the photo's place is {_short(given)}: expected text")
        if not uri:
            raise BadRowError("the list names no photo in this row")
        if "\0" in uri:
            raise BadRowError("there is a zero byte in the photo's place")

    def _id(self, row: _Row) -> str:
        given = row.get(self._roles["id"][0]) if self.has_ids else None
        if given is not None and (isinstance(given, bool) or not isinstance(given, (str, int))):
            raise BadRowError(f"the id is {_short(given)}: expected text or a whole number")
        return "" if given is None else readable(str(given))

    def _hands(self, row: _Row) -> tuple[ListedHand, ...] | None:
        box, right = self._box(row), self._right(row)
        return None if box is None and right is None else (ListedHand(box, right),)

    def _box(self, row: _Row) -> tuple[float, float, float, float] | None:
        names = self._roles.get("box", ())
        if not names:
            return None
        given = row.get(names[0]) if len(names) == 1 else [row.get(name) for name in names]
        if isinstance(given, str):
            given = given.strip("[]() ").replace(",", " ").split()
        if given is not None and not isinstance(given, list):
            raise BadRowError(f"the box is {_short(given)}: expected x1, y1, x2, y2")
        if not given or all(map(_is_empty, given)):
            return None
        numbers = [_number(value, "the box") for value in given[:5]]
        if len(numbers) != 4 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
            raise BadRowError(f"the box {numbers} is none: expected x1, y1, x2, y2 with x1 < x2 and y1 < y2")
        if (
            max(map(abs, numbers)) > _FARTHEST_PX
            or min(numbers[2] - numbers[0], numbers[3] - numbers[1]) < 1 / 16
        ):
            raise BadRowError(f"the box {numbers} is none: no photo has such pixels")
        return numbers[0], numbers[1], numbers[2], numbers[3]

    def _right(self, row: _Row) -> float | None:
        given = row.get(self._roles["right"][0]) if "right" in self._roles else None
        if _is_empty(given):
            return None
        side = _SIDES.get(str(given).strip().lower())
        if side is None:
            raise BadRowError(
                f"{_short(given)} is no hand's side: expected left or right, or whether it is_right"
            )
        return side

    def _focal(self, row: _Row) -> float | None:
        given = row.get(self._roles["focal"][0]) if "focal" in self._roles else None
        if _is_empty(given):
            return None
        focal_px = _number(given, "the focal length")
        if focal_px <= 0:
            raise BadRowError(f"the focal length is {focal_px}: expected pixels, more than 0")
        return focal_px


def _absolute(path: str) -> str:
    """The list under the real name of its folder, as the photos of a folder have it."""
    here = local_path(path)
    return str(Path(os.path.realpath(here.parent)) / here.name)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:60]}..."


def _number(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRowError(f"{what} holds {_short(value)}, which is no number to go by")
    return number


def _passed(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_string(kind):
        return _passed_text(value)
    if pa.types.is_boolean(kind):
        fits = isinstance(value, bool)
    elif pa.types.is_integer(kind):  # JSON has whole numbers of any size
        fits = type(value) is int and (-(1 << 63) <= value < 1 << 63 or pa.types.is_uint64(kind))
    else:
        fits = type(value) is float or (type(value) is int and abs(value) <= _EXACT)
    if not fits:
        raise BadRowError(f"{_short(value)} among values of type {kind}")
    return float(value) if pa.types.is_floating(kind) else value


def _passed_text(value: Any) -> str:
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (bool, int, float, list, dict)):
        return json.dumps(value, default=str)
    return str(value)


def _passed_type(kind: pa.DataType) -> pa.DataType:
    """Plain numbers stay, all else is text, nested values as JSON."""
    if pa.types.is_float16(kind):
        return pa.float32()
    is_plain = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return kind if is_plain else pa.string()


def _roles(names: Sequence[str], path: str) -> dict[str, tuple[str, ...]]:
    """Which columns say what; the first of a role's names that is there."""
    roles = {}
    for role, choices in _ROLES.items():
        there = [choice for choice in choices if set(choice) <= set(names)]
        if there:
            roles[role] = there[0]
        elif some := [name for choice in choices for name in choice if name in names]:
            raise UserError(f"'{path}' has {', '.join(some)} of a box: give x1, y1, x2 and y2")
    if "uri" not in roles:
        wanted = ", ".join(name for (name,) in _ROLES["uri"])
        raise UserError(
            f"'{path}' has no column for where the photos are, but {_said(names)}: name it one of {wanted}"
        )
    for name in names:
        meant = _meant(name, roles)
        if meant:
            raise UserError(f"'{path}' has a column {_said([name])}; did you mean '{meant}'?")
    return roles


def _said(names: Sequence[str]) -> str:
    """Names in a message of one line."""
    first = ", ".join(f"'{plain(name)}'" for name in names[:20])
    return first + ", ..." * (len(names) > 20) or "nothing"


def _meant(name: str, roles: dict[str, tuple[str, ...]]) -> str | None:
    """The name of a role that nothing has yet and that a column all but has."""
    missing = [choice for role, choices in _ROLES.items() if role not in roles for choice in choices]
    known = [known for choice in missing for known in choice]
    simple = name.strip().lower().replace("-", "_").replace(" ", "_")
    if simple in known:
        return simple
    if "box" not in roles and simple in _BOX_NAMES:
        return "box_xyxy"
    return next(iter(get_close_matches(simple, [k for k in known if len(k) > 3], 1, 0.85)), None)


def _check_types(types: dict[str, pa.DataType], roles: dict[str, tuple[str, ...]], path: str) -> None:
    """Of lists that have types; text may hold anything and is looked at row by row."""

    def number(kind: pa.DataType) -> bool:
        return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)

    def four(kind: pa.DataType) -> bool:
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        return is_list and number(kind.value_type)

    wanted: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
        "uri": (lambda kind: False, "text"),
        "id": (pa.types.is_integer, "text or whole numbers"),
        "box": (four, "lists of four numbers") if len(roles.get("box", ())) == 1 else (number, "numbers"),
        "right": (pa.types.is_boolean, "true and false, or left and right"),
        "focal": (number, "numbers"),
    }
    for role, names in roles.items():
        fits, said = wanted[role]
        for name in names:
            if not _is_text(types[name]) and not fits(types[name]):
                raise UserError(f"column '{name}' of '{path}' is of type {types[name]}: expected {said}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # what pandas calls categories
        return _is_text(kind.value_type)
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


# Reading


#: The name under which a row that is none says why.
_BROKEN = "\0broken"

#: So many rows of JSON lines tell what columns there are.
_FIRST_ROWS = 1000

#: The longest field of CSV: a quote that is never closed takes all that follows.
_MAX_FIELD = 1 << 24

#: Up to here every whole number is a float.
_EXACT = 1 << 53

#: No coordinate of a box is larger.
_FARTHEST_PX = 1e7


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Whatever is wrong with a list as a whole, as one line."""
    said = plain(shown(path))
    try:
        yield
    except UserError:
        raise
    except pa.ArrowException as error:
        raise UserError(f"'{said}' is no Parquet file, or damaged: {_first_line(error)}") from None
    except OSError as error:  # pyarrow's have no errno, but may have lines
        raise UserError(f"'{said}' can't be read: {error.strerror or _first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return plain(next(iter(str(error).splitlines()), type(error).__name__))


def _reader(path: str) -> tuple[Callable[[str], Iterator[_Row]], dict[str, pa.DataType]]:
    """How to walk a list's rows, and the types of its columns."""
    suffix = "." + path.rsplit(".", 1)[-1].lower()
    if suffix == ".parquet":
        with open_file(path) as file:
            schema = pq.read_schema(file)
        _check_names(schema.names, path)
        return _parquet_rows, dict(zip(schema.names, schema.types, strict=True))
    if suffix in (".jsonl", ".ndjson"):
        return _json_rows, _json_types(path)
    if suffix == ".txt":
        next(_lines(path), None)  # that it can be read
        return _text_rows, {"uri": pa.string()}
    header = next(_records(path), [])
    if isinstance(header, str):
        raise UserError(f"'{plain(shown(path))}' has no header: {header}")
    names = [name.strip() for name in header if name.strip()]
    _check_names(names, path)
    return _csv_rows, dict.fromkeys(names, pa.string())


def _check_names(names: Sequence[str], path: str) -> None:
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise UserError(f"'{plain(shown(path))}' has two columns of one name: {_said(twice)}")


def _lines(path: str) -> Iterator[str]:
    # Bytes that are not UTF-8 may name a file on disk.
    with open_file(path, ahead=1 << 22) as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"'{plain(shown(path))}' is UTF-16: save it as UTF-8")
        file.seek(0)
        yield from io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _text_rows(path: str) -> Iterator[_Row]:
    return ({"uri": line.rstrip("\r\n")} for line in _lines(path) if line.strip())


def _records(path: str) -> Iterator[list[str] | str]:
    """The header of CSV, then each row, or why it is none; blank lines are none."""
    csv.field_size_limit(_MAX_FIELD)
    ended = False

    def lines() -> Iterator[str]:
        nonlocal ended
        yield from _lines(path)
        ended = True

    reader = csv.reader(lines(), delimiter="\t" if path.lower().endswith(".tsv") else ",")
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield f"this row can't be read: {plain(str(error))}"
            continue
        if row is None:
            return
        if ended:  # a row ends with its line, unless it is in quotes
            yield "a quote that opens in this row is never closed"
        elif row:
            yield row


def _csv_rows(path: str) -> Iterator[_Row]:
    records = _records(path)
    names = [name.strip() for name in next(records, [])]
    for record in records:
        if isinstance(record, str):
            yield {_BROKEN: record}
            continue
        row = {name: value for name, value in zip(names, record, strict=False) if name}
        if len(record) < len(names) or any(record[len(names) :]):
            row[_BROKEN] = f"this row has {len(record)} values where the header has {len(names)}"
        yield row


def _json_rows(path: str) -> Iterator[_Row]:
    for line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield row if isinstance(row, dict) else {_BROKEN: "this line is no JSON object"}


def _json_types(path: str) -> dict[str, pa.DataType]:
    """The columns that the first rows have."""
    kinds: dict[str, set[str]] = {}
    for number, row in enumerate(islice(_json_rows(path), _FIRST_ROWS)):
        if _BROKEN in row:
            if not number:
                raise UserError(f"'{plain(shown(path))}' is not JSON lines: its first line is no object")
            continue
        for name, value in row.items():
            kinds.setdefault(name, set()).update(() if value is None else (_kind(value),))
    return {name: _json_type(name, those) for name, those in kinds.items()}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "whole" if abs(value) <= _EXACT else "long" if -(1 << 63) <= value < 1 << 63 else "text"
    if isinstance(value, list):
        numbers = all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in value)
        return "numbers" if numbers else "text"
    return "float" if isinstance(value, float) else "text"


def _json_type(name: str, kinds: set[str]) -> pa.DataType:
    """One type for all that a column has; whole numbers are floats, as the next may be none."""
    if not kinds:
        return pa.null()
    if kinds <= {"whole", "long"} and (kinds != {"whole"} or (name,) in _ROLES["id"]):
        return pa.int64()
    if kinds <= {"whole", "float"}:
        return pa.float64()
    only = next(iter(kinds)) if len(kinds) == 1 else "text"
    return {"bool": pa.bool_(), "numbers": pa.list_(pa.float64())}.get(only, pa.string())


def _parquet_rows(path: str) -> Iterator[_Row]:
    with open_file(path, ahead=1 << 22) as file:
        # Without a buffer's size, pyarrow reads a whole row group.
        table = pq.ParquetFile(file, buffer_size=1 << 20)
        for batch in table.iter_batches(4096, use_threads=False):
            columns = [_values(column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                yield dict(zip(batch.schema.names, values, strict=True))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_temporal(column.type):  # Python has no nanoseconds, and no year 10000
        with suppress(pa.ArrowException):
            return column.cast(pa.string()).to_pylist()
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # text that is no UTF-8 may name a file, too
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
