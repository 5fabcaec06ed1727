"""A list of photos in text, CSV, JSON or Parquet: one row per photo or hand.

`roles.py` defines the columns with a meaning. All other named columns pass through to the labels: from CSV as text,
from JSON with the types of the first rows. Bytes that are not UTF-8 pass through as `\\xNN`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from annotator.errors import UserError, printable
from annotator.sources.entry import (
    HAND_LENGTHS,
    Camera,
    Entry,
    Fault,
    ListedHand,
    is_hand_length,
    path_as_utf8,
)
from annotator.sources.lists.camera_columns import listed_camera
from annotator.sources.lists.name_index import NameIndex
from annotator.sources.lists.passed_columns import passed, passed_names, passed_type
from annotator.sources.lists.roles import ROLE_NAMES, check_types, roles_of
from annotator.sources.lists.rows import BROKEN, FIRST_ROWS, Row, reader_of, separator_of, user_errors
from annotator.sources.lists.values import BadRowError, finite_number, is_empty, short_repr
from annotator.sources.source import Source
from annotator.storage.files import is_local, join, local_path
from annotator.storage.remote import without_secrets

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")

#: The largest valid coordinate of a box.
_FARTHEST_PX = 1e7

#: A list whose coordinates are all up to this holds fractions, not pixels.
_FARTHEST_FRACTION = 2.0

_SIDES = {"right": 1.0, "r": 1.0, "true": 1.0, "1": 1.0, "left": 0.0, "l": 0.0, "false": 0.0, "0": 0.0}


class ListSource(Source):
    """The rows of a list, in their order.

    Rows of one photo that differ in box or side are its hands: they share an id and are numbered within the photo. Any
    other row that repeats a uri or id is a duplicate.
    """

    def __init__(self, path: str, normalised: bool = False, by_hand: bool = True) -> None:
        """Check the list's columns and first boxes.

        Args:
            path: the list.
            normalised: boxes are fractions of the photo's width and height.
            by_hand: whether rows of one photo may be its hands; otherwise every row but the first is a duplicate.

        Raises:
            UserError: the list can't be read, has no column for the photo's path, has a column of the wrong type, or
                has boxes that contradict `normalised`.
        """
        super().__init__()
        self._normalised, self._by_hand = normalised, by_hand
        self._path = _absolute(path) if is_local(path) else path
        self._folder = self._path.rsplit("/", 1)[0]
        self.place = without_secrets(path_as_utf8(self._path))
        name = printable(without_secrets(path))
        with user_errors(self._path):
            self._rows, self._types = reader_of(self._path)
        self._roles, self._layout = roles_of(list(self._types), name)
        check_types(self._types, self._roles, name)
        self._by_type = self._path.lower().endswith((".parquet", ".jsonl", ".ndjson", ".json"))
        is_text = self._by_type or self._path.lower().endswith(".txt")
        self._decimal_comma = not is_text and separator_of(self._path) == ";"
        used = {name for role, names in self._roles.items() if role != "camera" for name in names}
        self._passed = passed_names(self._types, used)
        self.columns = {to: passed_type(self._types[name]) for name, to in self._passed.items()}
        self._late = ROLE_NAMES - set(self._types)
        if self.has_boxes:
            self._check_fractions(name)

    def _check_fractions(self, name: str) -> None:
        """Refuse a list whose first boxes are fractions where pixels are expected, or the reverse."""
        farthest = []
        with user_errors(self._path):
            for row in islice(self._rows(self._path), FIRST_ROWS):
                with suppress(BadRowError):
                    box = self._corners(row)
                    farthest += [max(map(abs, box))] if box else []
        if not farthest:
            return
        if not self._normalised and max(farthest) <= _FARTHEST_FRACTION:
            raise UserError(
                f"the boxes in '{name}' are fractions, not pixels (the largest coordinate in the first rows is "
                f"{max(farthest):g}): add --boxes-normalised, or give pixels"
            )
        if self._normalised and min(farthest) > _FARTHEST_FRACTION:
            raise UserError(
                f"the boxes in '{name}' are not fractions (every box in the first rows has a coordinate of "
                f"{min(farthest):g} or more): remove --boxes-normalised"
            )

    @property
    def has_boxes(self) -> bool:
        """Return whether the list has boxes."""
        return "box" in self._roles

    @property
    def has_ids(self) -> bool:
        """Return whether the list has a column of ids."""
        return "id" in self._roles

    def key(self, entry: Entry) -> tuple[int]:
        """Return the row number."""
        return (entry.order,)

    def __iter__(self) -> Iterator[Entry]:
        self.reset_skipped()
        with NameIndex() as names:
            for uri, entry in self.rows():
                yield self._classified(entry, uri, names)

    def _classified(self, entry: Entry, uri: str, names: NameIndex) -> Entry:
        """Return the entry as a new photo, another hand of an earlier photo, or a duplicate."""
        # One index holds uris (u), ids (i), hand counts (n) and hands (h), distinguished by the first letter.
        before = names.first_value(f"u{entry.path}", entry.order) if entry.path else None
        same_id = self.has_ids and names.is_repeat(f"i{entry.id}")
        box = None if entry.fault or not entry.hands else entry.hands[0].box_xyxy
        if self._by_hand and box is not None:
            # Hands are counted only for photos whose first row has a box.
            counted, hand = f"n{entry.path}", f"h{entry.path}\0{entry.hands}"
            if before is None and not same_id:
                names.count(counted)
                names.is_repeat(hand)
            elif before is not None and names.first_value(counted, 0) and not names.is_repeat(hand):
                own_id = entry.id if self.has_ids else path_as_utf8(f"{before}:{uri}")
                return replace(entry, id=own_id, first_hand=names.count(counted))
        return replace(entry, duplicate=True) if before is not None or same_id else entry

    def rows(self) -> Iterator[tuple[str, Entry]]:
        """Yield each row's uri as written in the list, and its entry.

        Raises:
            UserError: the list can't be read to its end.
        """
        with user_errors(self._path):
            for number, row in enumerate(self._rows(self._path)):
                uri = self._uri(row)
                yield uri, self._entry(number, row, uri)

    def _given(self, row: Row, role: str) -> Any:
        """Return the value of the single column that has this role."""
        return row.get(self._roles[role][0]) if role in self._roles else None

    def _uri(self, row: Row) -> str:
        """Return the photo's uri as written in the row; empty if the row has none."""
        given = self._given(row, "uri")
        if not isinstance(given, str):
            return ""
        return given if self._by_type else given.strip()

    def _entry(self, number: int, row: Row, uri: str) -> Entry:
        elsewhere = not uri or "://" in uri or uri.startswith("/")
        path = uri if elsewhere else join(self._folder, uri)
        known: dict[str, Any] = {"id": path_as_utf8(f"{number}:{uri}")}
        try:
            known["id"] = self._id(row) or known["id"]
            if BROKEN in row:
                raise BadRowError(row[BROKEN])
            if late := next((name for name in self._late.intersection(row) if row[name] is not None), None):
                raise BadRowError(
                    f"this row has {late!r}, which none of the first {FIRST_ROWS:,} rows has: "
                    "add it to the first row too, as null if necessary"
                )
            known["extra"] = {
                to: passed(row.get(name), self.columns[to]) for name, to in self._passed.items()
            }
            self._check_place(row, uri)
            known["hands"], known["focal_px"] = self._hands(row), self._focal(row)
            known["hand_length_mm"], known["camera"] = self._hand_length(row), self._camera(row)
        except BadRowError as error:
            known["fault"] = Fault("bad_row", str(error))
        return Entry(
            path,
            order=number,
            boxes_in="fraction" if self._normalised and self.has_boxes else "file",
            **known,
        )

    def _check_place(self, row: Row, uri: str) -> None:
        given = self._given(row, "uri")
        if given is not None and not isinstance(given, str):
            raise BadRowError(f"the photo's uri is {short_repr(given)}: expected text")
        if not uri:
            raise BadRowError("this row has no photo uri")
        if "\0" in uri:
            raise BadRowError("the photo's uri contains a zero byte")

    def _id(self, row: Row) -> str:
        given = self._given(row, "id")
        if given is not None and (isinstance(given, bool) or not isinstance(given, (str, int))):
            raise BadRowError(f"the id is {short_repr(given)}: expected text or an integer")
        return "" if given is None else path_as_utf8(str(given))

    def _hands(self, row: Row) -> tuple[ListedHand, ...] | None:
        box, right = self._box(row), self._right(row)
        return None if box is None and right is None else (ListedHand(box, right),)

    def _box(self, row: Row) -> tuple[float, float, float, float] | None:
        """Return the hand's corners: in pixels, or in fractions of the photo if the list is normalised."""
        box = self._corners(row)
        if box is None:
            return None
        x1, y1, x2, y2 = box
        if x1 >= x2 or y1 >= y2:
            raise BadRowError(
                f"the box {list(box)} is invalid: expected x1, y1, x2, y2 with x1 < x2 and y1 < y2"
            )
        farthest = max(map(abs, box))
        if self._normalised and farthest > _FARTHEST_FRACTION:
            raise BadRowError(
                f"the box {list(box)} is invalid: expected fractions of the photo's width and height"
            )
        if farthest > _FARTHEST_PX or (not self._normalised and min(x2 - x1, y2 - y1) < 1 / 16):
            raise BadRowError(f"the box {list(box)} is invalid: no photo has such pixels")
        return box

    def _corners(self, row: Row) -> tuple[float, float, float, float] | None:
        """Return a row's box as x1, y1, x2, y2, from any layout of its columns."""
        names = self._roles.get("box", ())
        given = self._given(row, "box") if len(names) == 1 else [row.get(name) for name in names]
        if isinstance(given, str):
            given = given.strip("[]() ").replace(",", " ").split()
        if given is not None and not isinstance(given, list):
            raise BadRowError(f"the box is {short_repr(given)}: expected four numbers")
        if not given or all(map(is_empty, given)):
            return None
        numbers = [self._number(value, "the box") for value in given[:5]]
        if len(numbers) != 4:
            raise BadRowError(f"the box {numbers} is invalid: expected four numbers")
        a, b, c, d = numbers
        if self._layout == "size":
            return a, b, a + c, b + d
        if self._layout == "centre":
            return a - c / 2, b - d / 2, a + c / 2, b + d / 2
        return a, b, c, d

    def _number(self, value: Any, field: str) -> float:
        if self._decimal_comma and isinstance(value, str) and value.count(",") == 1:
            value = value.replace(",", ".")
        return finite_number(value, field)

    def _right(self, row: Row) -> float | None:
        given = self._given(row, "right")
        if is_empty(given):
            return None
        side = _SIDES.get(str(given).strip().lower())
        if side is None:
            raise BadRowError(
                f"the hand's side is {short_repr(given)}: expected left or right, or true or false for is_right"
            )
        return side

    def _focal(self, row: Row) -> float | None:
        given = self._given(row, "focal")
        if is_empty(given):
            return None
        focal_px = self._number(given, "the focal length")
        if not 1e-3 <= focal_px <= 1e9:  # beyond that a hand's position overflows
            raise BadRowError(f"the focal length is {focal_px}: expected a positive number of pixels")
        return focal_px

    def _camera(self, row: Row) -> Camera | None:
        try:
            return listed_camera(row, self._roles["camera"], self._number)
        except BadRowError:
            raise
        except ValueError as error:
            raise BadRowError(str(error)) from None

    def _hand_length(self, row: Row) -> float | None:
        given = self._given(row, "length")
        if is_empty(given):
            return None
        length_mm = self._number(given, "the hand's length")
        if not is_hand_length(length_mm):
            raise BadRowError(f"the hand's length is {length_mm:g}: expected {HAND_LENGTHS}")
        return length_mm


def _absolute(path: str) -> str:
    """Return the list's absolute path with symbolic links of its folder resolved, as for photos in a folder."""
    file = local_path(path)
    return str(Path(os.path.realpath(file.parent)) / file.name)
