"""Which columns of a list say what.

| column | names | type |
|---|---|---|
| where the photo is | `PLACE_NAMES` below | text; relative ones are relative to the list |
| its own id | `id`, `image_id` | text or whole number |
| the hand's box | see `box_columns.py` | four numbers, photo pixels |
| which hand | `is_right`, or `handedness`, `side` | true/false, or left/right |
| focal length | `focal_px` | a number, pixels |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches

import pyarrow as pa

from annotator.errors import UserError
from annotator.sources.entry import plain
from annotator.sources.lists.box_columns import BOX_NAMES, Layout, find_box

#: Names of the column that says where a photo is.
PLACE_NAMES = (
    *("uri", "image_uri", "url", "path", "image", "image_path", "img_path", "file_path", "filepath"),
    *("filename", "file_name", "file", "img"),
)

#: Of each role but the box, the names that a list may use for it.
ROLES: dict[str, tuple[str, ...]] = {
    "uri": PLACE_NAMES,
    "id": ("id", "image_id"),
    "right": ("is_right", "handedness", "side"),
    "focal": ("focal_px",),
}

#: Names that are a role's in any list.
ROLE_NAMES = BOX_NAMES.union(*ROLES.values())


def check_names(names: Sequence[str], path: str) -> None:
    """That no two columns have one name.

    Raises:
        UserError: two have.
    """
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise UserError(f"'{path}' has two columns of one name: {_quoted(twice)}")


def roles_of(names: Sequence[str], path: str) -> tuple[dict[str, tuple[str, ...]], Layout]:
    """The columns of each role, the first of its names that is there, and how those of the box are to be read.

    Raises:
        UserError: none says where photos are, one has almost a role's name, or a box is unclear.
    """
    roles: dict[str, tuple[str, ...]] = {}
    for role, known in ROLES.items():
        if there := [name for name in known if name in names]:
            roles[role] = (there[0],)
    box = find_box([name for name in names if (name,) not in roles.values()], path)
    if "uri" not in roles:
        wanted = ", ".join(PLACE_NAMES)
        raise UserError(
            f"'{path}' has no column for where the photos are, but {_quoted(names)}: name it one of {wanted}"
        )
    for name in names:
        meant = _meant(name, roles, box is not None)
        if meant:
            raise UserError(f"'{path}' has a column {_quoted([name])}; did you mean '{meant}'?")
    if box is None:
        return roles, "corners"
    return roles | {"box": box.names}, box.layout


def _quoted(names: Sequence[str]) -> str:
    """Names in a message of one line."""
    first = ", ".join(f"'{plain(name)}'" for name in names[:20])
    return first + ", ..." * (len(names) > 20) or "nothing"


def _meant(name: str, roles: dict[str, tuple[str, ...]], has_box: bool) -> str | None:
    """The name of a role that no column has yet, where this one is close to it."""
    known = [each for role, choices in ROLES.items() if role not in roles for each in choices]
    known += [] if has_box else ["box_xyxy", "box_xywh"]
    simple = name.strip().lower().replace("-", "_").replace(" ", "_")
    if simple in known:
        return simple
    return next(iter(get_close_matches(simple, [each for each in known if len(each) > 3], 1, 0.85)), None)


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
