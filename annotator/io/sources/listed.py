"""A list of photos: text, CSV, JSON lines or Parquet, a row a photo, with whatever else is known of it.

| column | names | type |
|---|---|---|
| where the photo is | `uri`, `image_uri`, `url`, `path`, `image` | text; relative ones are relative to the list |
| its own id | `id`, `image_id` | text or whole number |
| the hand's box | `box_xyxy`, or `x1`, `y1`, `x2`, `y2` (also with `_px`) | four numbers, photo pixels |
| which hand | `is_right`, or `handedness`, `side` | true/false, or left/right |
| focal length | `focal_px` | a number, pixels |

All others pass through to the labels: of CSV as text, of JSON lines as their first row has them.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import UserError
from annotator.io.entry import Entry, Fault, ListedHand, readable
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
        self._path = str(local_path(path).absolute()) if is_local(path) else path
        self._folder = self._path.rsplit("/", 1)[0]
        self.place = readable(self._path)
        self._rows, self._types = _reader(self._path)
        self._roles = _roles(list(self._types), shown(path))
        _check_types(self._types, self._roles, shown(path))
        used = {name for names in self._roles.values() for name in names}
        taken = set(label_schema(1).names)
        self._passed = {
            name: f"list_{name}" if name in taken else name for name in self._types if name not in used
        }
        self.columns = {to: _passed_type(self._types[name]) for name, to in self._passed.items()}

    @property
    def has_boxes(self) -> bool:
        """Whether it says where hands are."""
        return "box" in self._roles

    def key(self, entry: Entry) -> tuple[int]:
        """Rows come by number."""
        return (entry.order,)

    def __iter__(self) -> Iterator[Entry]:
        self.forget_skipped()
        with Seen() as seen:
            for number, row in enumerate(self._rows(self._path)):
                entry = self._entry(number, row)
                # A given id and a uri are different kinds of names.
                again = [seen.again(f"u{entry.path}"), "id" in self._roles and seen.again(f"i{entry.id}")]
                yield replace(entry, duplicate=True) if any(again) and not entry.fault else entry

    def given_uri(self, row: _Row) -> str:
        """The photo's place as the row has it."""
        return str(row.get(self._roles["uri"][0]) or "").strip()

    def rows(self) -> Iterator[tuple[str, Entry]]:
        """Each row's own word for the photo's place, and its entry."""
        for number, row in enumerate(self._rows(self._path)):
            yield self.given_uri(row), self._entry(number, row)

    def _entry(self, number: int, row: _Row) -> Entry:
        uri = self.given_uri(row)
        place = uri if not uri or "://" in uri or uri.startswith("/") else join(self._folder, uri)
        own_id = row.get(self._roles["id"][0]) if "id" in self._roles else None
        name = str(own_id) if own_id not in (None, "") else readable(f"{number}:{uri}")
        try:
            if not uri:
                raise BadRowError("the list names no photo in this row")
            return Entry(
                place,
                name,
                order=number,
                hands=self._hands(row),
                focal_px=self._focal(row),
                extra={to: _passed(row.get(name), self.columns[to]) for name, to in self._passed.items()},
            )
        except BadRowError as error:
            return Entry(place, name, order=number, fault=Fault("bad_row", str(error)))

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
        if not given or all(value in (None, "") for value in given):
            return None
        numbers = [_number(value, "the box") for value in given]
        if len(numbers) != 4 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
            raise BadRowError(f"the box {numbers} is none: expected x1, y1, x2, y2 with x1 < x2 and y1 < y2")
        return numbers[0], numbers[1], numbers[2], numbers[3]

    def _right(self, row: _Row) -> float | None:
        if "right" not in self._roles:
            return None
        given = row.get(self._roles["right"][0])
        if given is None or given == "":
            return None
        side = _SIDES.get(str(given).strip().lower())
        if side is None:
            raise BadRowError(f"{given!r} is no hand's side: expected left or right, or whether it is_right")
        return side

    def _focal(self, row: _Row) -> float | None:
        if "focal" not in self._roles:
            return None
        given = row.get(self._roles["focal"][0])
        if given is None or given == "":
            return None
        focal_px = _number(given, "the focal length")
        if focal_px <= 0:
            raise BadRowError(f"the focal length is {focal_px}: expected pixels, more than 0")
        return focal_px


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadRowError(f"{what} holds {value!r}, which is no number") from None
    if not math.isfinite(number):
        raise BadRowError(f"{what} holds {value!r}")
    return number


def _passed(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, default=str)
    fits = isinstance(value, bool) if pa.types.is_boolean(kind) else isinstance(value, (int, float))
    if not fits or (isinstance(value, bool) and not pa.types.is_boolean(kind)):
        raise BadRowError(f"{value!r} among values of type {kind}")
    return float(value) if pa.types.is_floating(kind) else value


def _passed_type(kind: pa.DataType) -> pa.DataType:
    """Plain numbers stay, all else is text, nested values as JSON."""
    plain = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return kind if plain else pa.string()


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
            f"'{path}' has no column for where the photos are, but {', '.join(names) or 'nothing'}: "
            f"name it one of {wanted}"
        )
    for name in names:
        meant = _meant(name, roles)
        if meant:
            raise UserError(f"'{path}' has a column {name!r}; did you mean {meant!r}?")
    return roles


def _meant(name: str, roles: dict[str, tuple[str, ...]]) -> str | None:
    """The name of a role that nothing has yet and that a column all but has."""
    missing = [choice for role, choices in _ROLES.items() if role not in roles for choice in choices]
    known = [known for choice in missing for known in choice if len(known) > 3]
    plain = name.lower().replace("-", "_").replace(" ", "_")
    return next(iter(get_close_matches(plain, known, 1, 0.85)), None)


def _check_types(types: dict[str, pa.DataType], roles: dict[str, tuple[str, ...]], path: str) -> None:
    """Of lists that have types; text may hold anything and is looked at row by row."""

    def number(kind: pa.DataType) -> bool:
        return pa.types.is_integer(kind) or pa.types.is_floating(kind)

    def box(kind: pa.DataType) -> bool:
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        return number(kind.value_type if is_list else kind)

    wanted: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
        "uri": (lambda kind: False, "text"),
        "id": (pa.types.is_integer, "text or whole numbers"),
        "box": (box, "numbers"),
        "right": (pa.types.is_boolean, "true and false, or left and right"),
        "focal": (number, "numbers"),
    }
    for role, names in roles.items():
        fits, said = wanted[role]
        for name in names:
            kind = types[name]
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
            if not text and not fits(kind):
                raise UserError(f"column {name!r} of '{path}' is of type {kind}: expected {said}")


def _reader(path: str) -> tuple[Callable[[str], Iterator[_Row]], dict[str, pa.DataType]]:
    """How to walk a list's rows, and the types of its columns."""
    suffix = "." + path.rsplit(".", 1)[-1].lower()
    try:
        if suffix == ".parquet":
            with open_file(path) as file:
                schema = pq.read_schema(file)
            return _parquet_rows, {field.name: field.type for field in schema}
        if suffix in (".jsonl", ".ndjson"):
            first = next(_json_rows(path), {})
            if _BROKEN in first:
                raise UserError(f"'{shown(path)}' is not JSON lines: its first line is no object")
            return _json_rows, {name: _json_type(value) for name, value in first.items()}
        if suffix == ".txt":
            return _text_rows, {"uri": pa.string()}
        return _csv_rows, dict.fromkeys(_header(path), pa.string())
    except pa.ArrowException as error:
        raise UserError(f"'{shown(path)}' is no Parquet file: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise UserError(f"'{shown(path)}' can't be read: {error.strerror or error}") from None


#: The name under which a line that is no JSON object says so.
_BROKEN = "\0broken"


def _json_type(value: Any) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, (int, float)):
        return pa.float64()
    if isinstance(value, list) and all(isinstance(part, (int, float)) for part in value):
        return pa.list_(pa.float64())
    return pa.string()


def _lines(path: str) -> Iterator[str]:
    # Bytes that are not UTF-8 may name a file on disk.
    with open_file(path, ahead=1 << 22) as file:
        yield from io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _text_rows(path: str) -> Iterator[_Row]:
    return ({"uri": line.rstrip("\r\n")} for line in _lines(path) if line.strip())


def _separator(path: str) -> str:
    return "\t" if path.lower().endswith(".tsv") else ","


def _header(path: str) -> list[str]:
    return next(csv.reader(_lines(path), delimiter=_separator(path)), [])


def _csv_rows(path: str) -> Iterator[_Row]:
    csv.field_size_limit(1 << 24)
    reader = csv.reader((line.replace("\0", "") for line in _lines(path)), delimiter=_separator(path))
    names = next(reader, [])
    return (dict(zip(names, row, strict=False)) for row in reader if row)


def _json_rows(path: str) -> Iterator[_Row]:
    for line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        yield row if isinstance(row, dict) else {_BROKEN: True}


def _parquet_rows(path: str) -> Iterator[_Row]:
    with open_file(path, ahead=1 << 22) as file:
        for batch in pq.ParquetFile(file).iter_batches(4096):
            yield from batch.to_pylist()
