"""Join the photos of one source with hands from another: a list with boxes, or labels from `amvur detect`."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from annotator.errors import UserError, printable
from annotator.labels.folder import label_files, read_columns
from annotator.labels.side import right_score
from annotator.sources.entry import BoxFrame, Entry, Fault, ListedHand, path_as_utf8
from annotator.sources.folder import holds_many
from annotator.sources.label_set import is_unfinished
from annotator.sources.lists.listed import LIST_SUFFIXES, ListSource
from annotator.sources.source import Source
from annotator.storage.files import is_local, local_path
from annotator.storage.remote import without_secrets

_COLUMNS = [
    *("image_uri", "image_id", "status", "reason", "error", "hand_index", "box_xyxy", "is_right"),
    "side_score",
]

_NOT_LISTED = Fault("not_listed", "the boxes do not list this photo")


class WithBoxes(Source):
    """The photos of a source, with the hands that `boxes` has for them, matched by uri or id.

    Label sets are matched by id first: a list may repeat a uri, and all frames of a video share one.
    """

    def __init__(self, photos: Source, boxes: str, normalised: bool = False) -> None:
        """Check the boxes.

        Args:
            photos: the source of the photos; if it is a list, each row is a photo.
            boxes: a list, or a label set.
            normalised: the list's boxes are fractions of each photo's width and height.

        Raises:
            UserError: there are no boxes, their run is unfinished, or they contradict `normalised`.
        """
        super().__init__()
        self.photos, self._boxes, self._normalised = photos, boxes, normalised
        self.place, self.root, self.columns = photos.place, photos.root, photos.columns
        self._is_list = boxes.lower().endswith(LIST_SUFFIXES)
        if self._is_list:
            if not ListSource(boxes, normalised).has_boxes:
                raise UserError(
                    f"'{printable(without_secrets(boxes))}' has no boxes: give columns x1, y1, x2, y2, or box_xyxy"
                )
        elif is_unfinished(boxes):
            raise UserError(
                f"'{printable(without_secrets(boxes))}' is unfinished: run the same `amvur detect` command again first"
            )
        elif not label_files(boxes):
            raise UserError(
                f"'{printable(without_secrets(boxes))}' has no boxes: give a list with boxes, or the output of "
                "`amvur detect`"
            )

    def key(self, entry: Entry) -> tuple[Any, ...]:
        """Return the key that the photos' source gives."""
        return self.photos.key(entry)

    def __iter__(self) -> Iterator[Entry]:
        try:
            with self._index() as index:
                for entry in self.photos:
                    yield entry if entry.fault else self._joined(entry, index)
        finally:
            self.skipped, self.skipped_count = self.photos.skipped, self.photos.skipped_count

    @contextmanager
    def renewing(self) -> Iterator[Callable[[Entry], Entry]]:
        """Yield a function that gives an entry of an earlier pass its current boxes."""
        with self._index() as index:
            yield (
                lambda entry: (
                    entry if _has_no_photo(entry) else self._joined(replace(entry, fault=None), index)
                )
            )

    @contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        # The index grows with the boxes, so it lies on disk, in a temporary file that SQLite deletes itself.
        index = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        index.execute("pragma journal_mode = off")
        index.execute("pragma synchronous = off")
        index.execute("begin")
        index.execute("create table hands (photo text, hand text)")
        rows = ((name, json.dumps(hand)) for names, hand in self._hands() for name in names)
        index.executemany("insert into hands values (?, ?)", rows)
        index.execute("create index by_photo on hands (photo)")
        try:
            yield index
        finally:
            index.close()

    def _hands(self) -> Iterator[tuple[set[str], Any]]:
        """Yield the names of a photo with one of its hands: a `ListedHand`, a `Fault`, or None for no hand."""
        if self._is_list:
            boxes = ListSource(self._boxes, self._normalised)
            for given, entry in boxes.rows():
                # Without a column of ids, an entry's id is only its row number.
                names = {f"id {path_as_utf8(given)}", f"uri {_normal(entry)}"}
                names |= {f"id {entry.id}"} if boxes.has_ids else set()
                yield names, entry.fault or next(iter(entry.hands or ()), None)
            return
        for name in sorted(label_files(self._boxes)):
            table = read_columns(self._boxes, name, _COLUMNS)
            for row in table.to_pylist():
                yield {f"uri {row['image_uri']}", f"id {row['image_id']}"}, _hand_of(row)

    def _joined(self, entry: Entry, index: sqlite3.Connection) -> Entry:
        listed = self._listed_hands(entry, index)
        if not listed:
            return replace(entry, fault=_NOT_LISTED)
        hands: list[ListedHand] = []
        for hand in listed:
            if hand is not None and isinstance(hand[0], str):
                return replace(entry, fault=Fault(*hand))
            if hand is not None:
                hands.append(ListedHand(tuple(hand[0]) if hand[0] else None, hand[1]))
        boxes_in: BoxFrame = "photo" if not self._is_list else "fraction" if self._normalised else "file"
        return replace(entry, hands=tuple(hands), boxes_in=boxes_in)

    def _listed_hands(self, entry: Entry, index: sqlite3.Connection) -> list[Any]:
        """Return the listed hands of a photo, looked up by its id and uri."""
        names = [f"uri {entry.uri}", f"uri {_normal(entry)}", f"id {entry.id}"]
        if entry.frame_index is not None:
            names = names[2:]  # all frames of the video share the uri
        for name in names if self._is_list else reversed(names):
            rows = index.execute("select hand from hands where photo = ? order by rowid", (name,)).fetchall()
            if rows:
                return [json.loads(text) for (text,) in rows]
        return []


def _has_no_photo(entry: Entry) -> bool:
    """Return whether the fault comes from the photos' source: an invalid row, or a damaged file of many photos."""
    if entry.fault is None:
        return False
    return (
        entry.fault.reason in ("bad_row", "unsupported")
        or (entry.inside is not None and not entry.at)
        or holds_many(entry)
    )


def _normal(entry: Entry) -> str:
    """Return an entry's uri without `.` and `..` parts, which a list may contain."""
    if not is_local(entry.path):
        return entry.uri
    path = path_as_utf8(os.path.normpath(local_path(entry.path))) if entry.path else ""
    return path + (f"#{entry.inside}" if entry.inside is not None else "")


def _hand_of(row: dict[str, Any]) -> Any:
    if row["status"] == "ok":
        right = None if row["is_right"] is None else right_score(row["is_right"], row["side_score"])
        return ListedHand(row["box_xyxy"], right)
    return None if row["status"] == "no_hand" else Fault(row["reason"], row["error"])
