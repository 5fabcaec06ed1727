"""An entry: one photo to label, or one listed hand of it, with its location and listed data."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from annotator.lens import Lens, LensModel

#: The unit of boxes: pixels of the upright file; square pixels of the photo, as in labels; or fractions of its width
#: and height.
BoxFrame = Literal["file", "photo", "fraction"]

#: The shortest and the longest hand that a user may give, millimetres, and the limits as text.
_HAND_LENGTHS_MM = (50.0, 300.0)
HAND_LENGTHS = "50 to 300 millimetres, from wrist to middle fingertip"

#: Limits of focal lengths and coordinates in pixels: beyond them a hand's position overflows.
_FOCAL_LIMITS_PX, _FARTHEST_PX = (1e-3, 1e9), 1e7

#: x, y in photo pixels and depth in the same unit, each None where unknown.
Landmark = tuple[float | None, float | None, float | None]


class ListedHand(NamedTuple):
    """One hand of a photo, from a list or a detector's labels."""

    box_xyxy: tuple[float, float, float, float] | None = None  # unit: the entry's `boxes_in`
    right_score: float | None = None  # probability of a right hand
    landmarks: tuple[Landmark, ...] | None = None  # 21, FreiHAND's order
    detection_score: float | None = None


class Camera(NamedTuple):
    """The camera of a photo, as a user gives it; pixels of the upright file, or as the entry's boxes.

    Pixel centres are at half integers: add 0.5 to `cx` and `cy` of OpenCV.
    """

    fx: float
    fy: float | None = None  # None: fx
    cx: float | None = None  # None: the photo's centre
    cy: float | None = None
    model: LensModel = "pinhole"
    distortion: tuple[float, ...] = ()  # OpenCV's coefficients, see `annotator.lens`

    def check(self) -> None:
        """Raise a ValueError for an impossible camera."""
        for name in ("fx", "fy"):
            value = getattr(self, name)
            if value is not None and not _FOCAL_LIMITS_PX[0] <= value <= _FOCAL_LIMITS_PX[1]:
                raise ValueError(f"{name} is {value}: expected a positive number of pixels")
        if (self.cx is None) != (self.cy is None):
            raise ValueError("only one of cx and cy is given: expected both, or none")
        if not max(abs(self.cx or 0), abs(self.cy or 0)) <= _FARTHEST_PX:
            raise ValueError(f"the principal point is {self.cx:g}, {self.cy:g}: expected photo pixels")
        if not all(map(math.isfinite, self.distortion)):
            raise ValueError(f"the distortion is {self.distortion}: expected finite numbers")
        Lens(self.fx, self.fy or self.fx, 0, 0, self.model, tuple(self.distortion))  # checks the coefficients


class Fault(NamedTuple):
    """The reason why an entry has no photo to read, determined while listing the source."""

    reason: str  # one of `schema.REASONS`
    message: str


@dataclass(frozen=True, slots=True)  # slots: thousands are in memory at a time
class Entry:
    """One photo, frame of a video, or faulty file: each gets at least one row."""

    path: str  # path or URL of the file; may hold surrogates for bytes that are not UTF-8
    id: str  # stable and unique: the path below the source, the list's id, or the list's row and uri
    order: int = 0  # position in the list, or in the containing file
    inside: str | None = None  # the name of a tar's member or the number of a Parquet file's row
    at: tuple[int, ...] = ()  # location in a tar, Parquet file or video; () is the whole file
    frame_index: int | None = None
    frame_time_s: float | None = None
    hands: tuple[ListedHand, ...] | None = None  # None: hands are not listed; (): listed as without hands
    first_hand: int = 0  # `hand_index` of its first hand, if earlier rows have other hands of the photo
    boxes_in: BoxFrame = "file"
    focal_px: float | None = None
    camera: Camera | None = None  # in place of `focal_px`
    hand_length_mm: float | None = None  # of its hands, wrist to middle fingertip along the bones
    # An earlier entry of the list has the same uri or id, and this entry is not another hand of it.
    duplicate: bool = False
    fault: Fault | None = None
    photos: int = 1  # that its rows are of: a sequence's entry stands for many
    extra: dict[str, Any] = field(default_factory=dict)  # the list's other columns

    @property
    def uri(self) -> str:
        """Return the photo's location as valid UTF-8: the file, and after `#` the name inside it."""
        return path_as_utf8(self.path) + (f"#{self.inside}" if self.inside is not None else "")

    @property
    def file_id(self) -> str:
        """Return the id of the containing file, which many entries may share."""
        within = self.inside if self.frame_index is None else str(self.frame_index)
        return self.id.removesuffix(f"#{within}") if within is not None else self.id

    @property
    def lists_boxes(self) -> bool:
        """Whether the entry lists boxes, or lists that the photo shows no hand."""
        hands = self.hands
        return hands is not None and (not hands or any(hand.box_xyxy is not None for hand in hands))

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value != _DEFAULTS.get(name)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Entry:
        """Return the entry that `to_json` encoded.

        Raises:
            TypeError, ValueError: the values do not come from `to_json`.
        """
        if "at" in values:
            values["at"] = tuple(values["at"])
        if values.get("hands") is not None:
            values["hands"] = tuple(_hand(*hand) for hand in values["hands"])
        if "camera" in values:
            camera = Camera(*values["camera"])
            values["camera"] = camera._replace(distortion=tuple(camera.distortion))
        if "fault" in values:
            values["fault"] = Fault(*values["fault"])
        return Entry(**values)


def _hand(
    box: list[float] | None, right: float | None, landmarks: Any = None, score: float | None = None
) -> ListedHand:
    """Return a hand from JSON, which has lists instead of tuples."""
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
    "photos": 1,
    "extra": {},
    **dict.fromkeys(
        ["inside", "frame_index", "frame_time_s", "hands", "focal_px", "camera", "hand_length_mm", "fault"]
    ),
}


def is_hand_length(length_mm: float) -> bool:
    """Return whether a hand can have this length."""
    return _HAND_LENGTHS_MM[0] <= length_mm <= _HAND_LENGTHS_MM[1]


#: A backslash that could be mistaken for an escaped byte.
_LOOKS_ESCAPED = re.compile(rb"\\(?=x[0-9a-f]{2})")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def path_as_utf8(path: str) -> str:
    r"""Return a path as valid UTF-8, unique per path; other bytes become `\xNN`."""
    try:
        data = os.fsencode(path)
    except UnicodeEncodeError:  # JSON may contain lone surrogates that no file name has
        data = path.encode("utf-8", "surrogatepass")
    return _LOOKS_ESCAPED.sub(rb"\\x5c", data).decode("utf-8", "backslashreplace")


def path_of(text: str) -> str:
    """Return the path that `path_as_utf8` converted to this text."""
    if "\\x" not in text:
        return text
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), os.fsencode(text)))


def entries_to_json(entries: list[Entry]) -> str:
    """Return entries as one line of JSON."""
    return json.dumps([entry.to_json() for entry in entries], separators=(",", ":"))
