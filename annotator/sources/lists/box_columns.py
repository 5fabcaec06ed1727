"""Find the columns of a list that hold a hand's box, under the names that are in common use.

Four columns are a box if their names have one meaning: two corners, a corner and a size, or a centre and a size. They
may have a prefix such as `bbox_` and the suffix `_px`. Any other columns that look like a box are refused: otherwise
the box would be ignored, and the whole photo used as the crop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Literal, NamedTuple

from annotator.errors import UserError, printable, quoted

Layout = Literal["corners", "size", "centre"]


class BoxColumns(NamedTuple):
    """The columns of a list that hold boxes."""

    names: tuple[str, ...]  # four columns with a number each, or one column of four numbers
    layout: Layout


#: Names of single columns with four numbers.
_ONE: dict[str, Layout] = {
    "box_xyxy": "corners", "bbox_xyxy": "corners", "xyxy": "corners", "box_xyxy_px": "corners",
    "box_xywh": "size", "bbox_xywh": "size", "xywh": "size",
    "box_cxcywh": "centre", "bbox_cxcywh": "centre", "cxcywh": "centre",
}  # fmt: skip

#: Names of single columns that could hold corners, or a corner and a size.
_VAGUE = {
    "box",
    "boxes",
    "bbox",
    "bboxes",
    "rect",
    "roi",
    "boundingbox",
    "boundingboxes",
    "handbox",
    "handbbox",
}

_CORNERS = [
    *(("x1", "y1", "x2", "y2"), ("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax")),
    *(("minx", "miny", "maxx", "maxy"), ("left", "top", "right", "bottom"), ("xtl", "ytl", "xbr", "ybr")),
]
_TOP_LEFT = [("x", "y"), ("left", "top"), ("xmin", "ymin"), ("x1", "y1"), ("x0", "y0"), ("xtl", "ytl")]
_CENTRES = [("cx", "cy"), ("xcenter", "ycenter"), ("xcentre", "ycentre"), ("centerx", "centery")]
_SIZES = [("w", "h"), ("width", "height")]

#: The names of four columns, without prefix and underscores, in order of priority.
_FOUR: dict[tuple[str, ...], Layout] = {
    **dict.fromkeys(_CORNERS, "corners"),
    **{start + size: "size" for start, size in product(_TOP_LEFT, _SIZES)},
    **{start + size: "centre" for start, size in product(_CENTRES, _SIZES)},
}
_PARTS = {part for four in _FOUR for part in four} | {"x3", "y3"}

#: Numbered corners. Together with a third number they could be a polygon, or key points.
_NUMBERED = (_CORNERS[0], _CORNERS[1])

#: Prefixes of the box of a row.
_PREFIXES = {"", "bbox", "box", "bb", "hand", "hand_bbox", "hand_box", "bounding_box", "rect", "roi"}
_OF_BOXES = _PREFIXES - {"", "hand"}

#: Parts that always belong to a box.
_UNMISTAKABLE = {part for four in _CORNERS for part in four} - {"left", "top", "right", "bottom", "x0", "y0"}

#: All names without prefix that only a box has.
BOX_NAMES = frozenset({*_ONE, *_UNMISTAKABLE, *(f"{part}_px" for part in _UNMISTAKABLE)})


def find_box(names: Sequence[str], path: str) -> BoxColumns | None:
    """Return the columns of the hand's box among a list's columns; None without a box.

    Raises:
        UserError: a box is incomplete or ambiguous, or there are two.
    """
    one = [name for name in names if name.strip().lower() in _ONE]
    if one:
        return BoxColumns((one[0],), _ONE[one[0].strip().lower()])
    groups = _groups(names)
    complete = {prefix: four for prefix, group in groups.items() if (four := _complete(group, path))}
    boxes = [prefix for prefix in complete if prefix[0] in _PREFIXES]
    others = [prefix for prefix in complete if prefix[0] not in _PREFIXES]
    if len(boxes) > 1 or (others and not boxes):
        several = " and ".join(
            quoted([groups[prefix][part] for part in complete[prefix]]) for prefix in (boxes or others)[:3]
        )
        raise UserError(
            f"'{path}' has {several}: give each hand its own row, name its box x1, y1, x2, y2, and remove other boxes"
        )
    if boxes:
        four = complete[boxes[0]]
        return BoxColumns(tuple(groups[boxes[0]][part] for part in four), _FOUR[four])
    _refuse_parts(groups, path)
    vague = next((name for name in names if _words(name).replace("_", "") in _VAGUE), None)
    if vague is not None:
        raise UserError(
            f"'{path}' has a column {quoted([vague])}; did you mean 'box_xyxy' (two corners), or 'box_xywh' (a "
            "corner, width and height)?"
        )
    return None


def _words(name: str) -> str:
    """Return a column's name in lower case, with its words joined by underscores."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\s.\-]+", "_", spaced).lower()


def _groups(names: Sequence[str]) -> dict[tuple[str, bool], dict[str, str]]:
    """Group the columns that may be parts of a box: (prefix, has `_px`) -> part -> column."""
    groups: dict[tuple[str, bool], dict[str, str]] = {}
    for name in names:
        words = _words(name).split("_")
        in_px = words[-1] in ("px", "pixels")
        words = words[:-1] if in_px else words
        for end in range(len(words)):
            part = "".join(words[end:])
            if part in _PARTS:
                groups.setdefault(("_".join(words[:end]), in_px), {}).setdefault(part, name)
                break
    return groups


def _complete(group: dict[str, str], path: str) -> tuple[str, ...] | None:
    """Return the four parts of a group that make a box; None if it has no complete box."""
    box = next((four for four in _FOUR if set(four) <= set(group)), None)
    numbered = {"x0", "x1", "x2", "x3"} & set(group)
    if box in _NUMBERED and len(numbered) > 2:
        several = quoted([group[part] for part in sorted(group)][:8])
        raise UserError(
            f"'{path}' has {several}, which may be a box, a polygon or key points: name a box xmin, ymin, xmax, ymax"
        )
    return box


def _refuse_parts(groups: dict[tuple[str, bool], dict[str, str]], path: str) -> None:
    """Refuse columns that are parts of an incomplete box."""
    for (prefix, _), group in groups.items():
        if prefix not in _PREFIXES:
            continue
        most = max(sum(part in group for part in four) for four in _FOUR)
        if most >= 3 or prefix in _OF_BOXES or _UNMISTAKABLE & set(group):
            raise UserError(
                f"'{path}' has only {', '.join(map(printable, group.values()))} of a box: give x1, y1, x2 and y2, "
                "or x, y, w and h"
            )
