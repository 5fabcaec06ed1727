"""The roles of a list's columns.

| column | names | type |
|---|---|---|
| the photo's path or URL | `PLACE_NAMES` below | text; a relative path starts at the list's folder |
| the photo's id | `id`, `image_id` | text or integer |
| the hand's box | see `box_columns.py` | four numbers, photo pixels |
| the hand's side | `is_right`, or `handedness`, `side` | true/false, or left/right |
| focal length | `focal_px` | a number, pixels |
| camera | see `camera_columns.py` | numbers, pixels |
| hand length | `hand_length_mm` | a number, millimetres from wrist to middle fingertip |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches

import pyarrow as pa

from annotator.errors import UserError, quoted
from annotator.sources.lists.box_columns import BOX_NAMES, BoxColumns, Layout, find_box
from annotator.sources.lists.camera_columns import camera_names, check_camera_types
from annotator.sources.lists.values import is_list_type, is_number_type

#: Names of the column with a photo's path or URL.
PLACE_NAMES = (
    *("uri", "image_uri", "url", "path", "image", "image_path", "img_path", "file_path", "filepath"),
    *("filename", "file_name", "file", "img"),
)

#: The column names of each role except the box, in order of priority.
ROLES: dict[str, tuple[str, ...]] = {
    "uri": PLACE_NAMES,
    "id": ("id", "image_id"),
    "right": ("is_right", "handedness", "side"),
    "focal": ("focal_px",),
    "length": ("hand_length_mm",),
}

#: Names that have a role in every list.
ROLE_NAMES = BOX_NAMES.union(*ROLES.values(), ["fx"])


def check_names(names: Sequence[str], path: str) -> None:
    """Check that column names are unique.

    Raises:
        UserError: two columns have the same name.
    """
    repeated = [name for number, name in enumerate(names) if name in names[:number]]
    if repeated:
        raise UserError(f"'{path}' has two columns with the same name: {quoted(repeated)}")


def roles_of(names: Sequence[str], path: str) -> tuple[dict[str, tuple[str, ...]], Layout]:
    """Return the columns of each role, and the layout of the box's columns.

    Raises:
        UserError: no column has the photos' paths, a column's name is close to a role's name, or a box is ambiguous.
    """
    roles: dict[str, tuple[str, ...]] = {}
    for role, known in ROLES.items():
        if present := [name for name in known if name in names]:
            roles[role] = (present[0],)
    roles["camera"] = camera_names(names, path)
    box = _box_beside_camera([name for name in names if (name,) not in roles.values()], roles["camera"], path)
    if "uri" not in roles:
        wanted = ", ".join(PLACE_NAMES)
        raise UserError(
            f"'{path}' has no column with the photos' paths; its columns are {quoted(names)}: use one of {wanted}"
        )
    for name in names:
        meant = _meant(name, roles, box is not None)
        if meant:
            raise UserError(f"'{path}' has a column {quoted([name])}; did you mean '{meant}'?")
    if box is None:
        return roles, "corners"
    return roles | {"box": box.names}, box.layout


def _box_beside_camera(names: Sequence[str], camera: Sequence[str], path: str) -> BoxColumns | None:
    """Return the box among columns; `cx` and `cy` of a camera are none of its parts."""
    box = find_box([name for name in names if name not in camera], path)
    if box is None and camera and find_box(names, path) is not None:
        raise UserError(
            f"'{path}' has 'fx', so that 'cx' and 'cy' are the camera's principal point: name the box's centre "
            "box_cx, box_cy, box_w, box_h"
        )
    return box


def _meant(name: str, roles: dict[str, tuple[str, ...]], has_box: bool) -> str | None:
    """Return the missing role's name that a column's name is close to; None if it is close to no such name."""
    known = [each for role, choices in ROLES.items() if role not in roles for each in choices]
    known += [] if has_box else ["box_xyxy", "box_xywh"]
    simple = name.strip().lower().replace("-", "_").replace(" ", "_")
    if simple in known:
        return simple
    return next(iter(get_close_matches(simple, [each for each in known if len(each) > 3], 1, 0.85)), None)


def check_types(types: dict[str, pa.DataType], roles: dict[str, tuple[str, ...]], path: str) -> None:
    """Check the column types of each role; text is accepted everywhere, because rows are checked one by one.

    Raises:
        UserError: a column has the wrong type.
    """

    def four(kind: pa.DataType) -> bool:
        return is_list_type(kind) and is_number_type(kind.value_type)

    wanted: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
        "uri": (lambda kind: False, "text"),
        "id": (pa.types.is_integer, "text or integers"),
        "box": (four, "lists of four numbers")
        if len(roles.get("box", ())) == 1
        else (is_number_type, "numbers"),
        "right": (pa.types.is_boolean, "true and false, or left and right"),
        "focal": (is_number_type, "numbers"),
        "length": (is_number_type, "numbers"),
    }
    check_camera_types(types, roles["camera"], path)
    for role, names in roles.items():
        if role == "camera":
            continue
        fits, expected = wanted[role]
        for name in names:
            if not _is_text(types[name]) and not fits(types[name]):
                raise UserError(f"column '{name}' of '{path}' is of type {types[name]}: expected {expected}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # categories in pandas
        return _is_text(kind.value_type)
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )
