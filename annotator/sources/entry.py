"""One photo to label, or one hand that a list has of it: where it is, and what is already known of it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

#: What boxes are measured in: pixels of the upright file; pixels of the photo as labels have it, which are squares;
#: fractions of width and height.
BoxFrame = Literal["file", "photo", "fraction"]

#: x, y in photo pixels and depth in the same unit, each None where unknown.
Landmark = tuple[float | None, float | None, float | None]


class ListedHand(NamedTuple):
    """One hand of a photo as a list or a detector's labels have it."""

    box_xyxy: tuple[float, float, float, float] | None = None  # as its entry's `boxes_in` has it
    right_score: float | None = None  # probability of a right hand
    landmarks: tuple[Landmark, ...] | None = None  # 21, FreiHAND's order
    detection_score: float | None = None


class Fault(NamedTuple):
    """Why there is nothing to read: known when the source was listed."""

    reason: str  # of the closed list in `schema.REASONS`
    message: str


@dataclass(frozen=True, slots=True)  # thousands are under way at a time
class Entry:
    """One photo, frame of a video, or whatever else takes a row."""

    path: str  # of its file, a path or URL; may hold surrogates for bytes that are not UTF-8
    id: str  # stable and its own: the path below the source, the list's id, or the list's row and uri
    order: int = 0  # its place in the list, or in the file that holds it
    inside: str | None = None  # the name of a tar's member or the number of a Parquet file's row
    at: tuple[int, ...] = ()  # where in the file, as `tar`, `parquet` and `video` have it; () is all of it
    frame_index: int | None = None
    frame_time_s: float | None = None
    hands: tuple[ListedHand, ...] | None = None  # None: nobody has looked; () somebody has, and found none
    first_hand: int = 0  # `hand_index` of its first hand: earlier rows of a list have the photo's others
    boxes_in: BoxFrame = "file"
    focal_px: float | None = None
    duplicate: bool = (
        False  # an earlier entry of the list has the same uri or id, and this is no further hand
    )
    fault: Fault | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # the list's other columns

    @property
    def uri(self) -> str:
        """The place as text that every reader can hold: the file's, and what it is called inside."""
        return readable(self.path) + (f"#{self.inside}" if self.inside is not None else "")

    @property
    def file_id(self) -> str:
        """The id of the file that holds it, which many entries may share."""
        within = self.inside if self.frame_index is None else str(self.frame_index)
        return self.id.removesuffix(f"#{within}") if within is not None else self.id

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value != _DEFAULTS.get(name)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Entry:
        """The inverse of `to_json`.

        Raises:
            TypeError, ValueError: it is not.
        """
        if "at" in values:
            values["at"] = tuple(values["at"])
        if values.get("hands") is not None:
            values["hands"] = tuple(_hand(*hand) for hand in values["hands"])
        if "fault" in values:
            values["fault"] = Fault(*values["fault"])
        return Entry(**values)


def _hand(
    box: list[float] | None, right: float | None, landmarks: Any = None, score: float | None = None
) -> ListedHand:
    """A hand of JSON, where lists stand for tuples."""
    return ListedHand(
        None if box is None else (box[0], box[1], box[2], box[3]),
        right,
        None if landmarks is None else tuple((x, y, z) for x, y, z in landmarks),
        score,
    )


_DEFAULTS: dict[str, Any] = {
    "order": 0,
    "at": (),
    "first_hand": 0,
    "boxes_in": "file",
    "duplicate": False,
    "extra": {},
    **dict.fromkeys(["inside", "frame_index", "frame_time_s", "hands", "focal_px", "fault"]),
}


#: A backslash that would read as the escape of a byte.
_LOOKS_ESCAPED = re.compile(rb"\\(?=x[0-9a-f]{2})")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def readable(path: str) -> str:
    r"""A path as valid UTF-8, each its own; bytes that are not become `\xNN`."""
    try:
        data = os.fsencode(path)
    except UnicodeEncodeError:  # JSON may name halves of characters that no file's name has
        data = path.encode("utf-8", "surrogatepass")
    return _LOOKS_ESCAPED.sub(rb"\\x5c", data).decode("utf-8", "backslashreplace")


def path_of(text: str) -> str:
    """The path that `readable` gave this text for."""
    if "\\x" not in text:
        return text
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), os.fsencode(text)))


def plain(text: str) -> str:
    """Text for a message of one line: what can't be printed as its escape, and not too much of it."""
    whole = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:200])
    return whole + " ..." * (len(text) > 200)


def dumps(entries: list[Entry]) -> str:
    """Entries as one line of JSON."""
    return json.dumps([entry.to_json() for entry in entries], separators=(",", ":"))
