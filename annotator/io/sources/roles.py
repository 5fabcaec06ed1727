"""Which columns of a list say what.

| column | names | type |
|---|---|---|
| where the photo is | `uri`, `image_uri`, `url`, `path`, `image` | text; relative ones are relative to the list |
| its own id | `id`, `image_id` | text or whole number |
| the hand's box | `box_xyxy`, or `x1`, `y1`, `x2`, `y2` (also with `_px`) | four numbers, photo pixels |
| which hand | `is_right`, or `handedness`, `side` | true/false, or left/right |
| focal length | `focal_px` | a number, pixels |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches

import pyarrow as pa

from annotator.errors import UserError
from annotator.io.entry import plain

#: Of each role, the names, or sets of names, that a list may use for it.
ROLES: dict[str, list[tuple[str, ...]]] = {
    "uri": [("uri",), ("image_uri",), ("url",), ("path",), ("image",)],
    "id": [("id",), ("image_id",)],
    "box": [("box_xyxy",), ("x1", "y1", "x2", "y2"), ("x1_px", "y1_px", "x2_px", "y2_px")],
    "right": [("is_right",), ("handedness",), ("side",)],
    "focal": [("focal_px",)],
}

ROLE_NAMES = frozenset(name for choices in ROLES.values() for choice in choices for name in choice)

#: What others call a box; one that passed through unseen would leave whole photos as crops.
_BOX_NAMES = ("box", "boxes", "bbox", "bboxes", "xyxy", "bbox_xyxy", "box_xyxy_px")


def check_names(names: Sequence[str], path: str) -> None:
    """That no two columns have one name.

    Raises:
        UserError: two have.
    """
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise UserError(f"'{path}' has two columns of one name: {_quoted(twice)}")


def roles_of(names: Sequence[str], path: str) -> dict[str, tuple[str, ...]]:
    """Which columns say what; the first of a role's names that is there.

    Raises:
        UserError: none says where photos are, or one is all but named like a role.
    """
    roles = {}
    for role, choices in ROLES.items():
        there = [choice for choice in choices if set(choice) <= set(names)]
        if there:
            roles[role] = there[0]
        elif some := [name for choice in choices for name in choice if name in names]:
            raise UserError(f"'{path}' has {', '.join(some)} of a box: give x1, y1, x2 and y2")
    if "uri" not in roles:
        wanted = ", ".join(name for (name,) in ROLES["uri"])
        raise UserError(
            f"'{path}' has no column for where the photos are, but {_quoted(names)}: name it one of {wanted}"
        )
    for name in names:
        meant = _meant(name, roles)
        if meant:
            raise UserError(f"'{path}' has a column {_quoted([name])}; did you mean '{meant}'?")
    return roles


def _quoted(names: Sequence[str]) -> str:
    """Names in a message of one line."""
    first = ", ".join(f"'{plain(name)}'" for name in names[:20])
    return first + ", ..." * (len(names) > 20) or "nothing"


def _meant(name: str, roles: dict[str, tuple[str, ...]]) -> str | None:
    """The name of a role that nothing has yet and that a column all but has."""
    missing = [choice for role, choices in ROLES.items() if role not in roles for choice in choices]
    known = [known for choice in missing for known in choice]
    simple = name.strip().lower().replace("-", "_").replace(" ", "_")
    if simple in known:
        return simple
    if "box" not in roles and simple in _BOX_NAMES:
        return "box_xyxy"
    return next(iter(get_close_matches(simple, [k for k in known if len(k) > 3], 1, 0.85)), None)


def check_types(types: dict[str, pa.DataType], roles: dict[str, tuple[str, ...]], path: str) -> None:
    """That a list's types fit; text may hold anything and is looked at row by row.

    Raises:
        UserError: a column's does not.
    """

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
