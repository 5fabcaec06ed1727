"""The columns of a list that describe each photo's camera.

| column | content |
|---|---|
| `fx`, `fy`, `cx`, `cy` | numbers, pixels of the upright file |
| `distortion` | OpenCV's coefficients: a list of numbers, or text such as `[-0.28, 0.07, 0, 0]` |
| `camera_model` | `pinhole` (default) or `fisheye`: the meaning of the coefficients |

Only a list with `fx` has them: elsewhere `cx` and `cy` are the centre of a box. They pass through to the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from annotator.errors import UserError
from annotator.lens import LensModel
from annotator.sources.entry import Camera
from annotator.sources.lists.values import is_empty, is_list_type, is_number_type

_NUMBERS = ("fx", "fy", "cx", "cy")
_DISTORTION, _MODEL = "distortion", "camera_model"


def camera_names(names: Sequence[str], path: str) -> tuple[str, ...]:
    """Return the columns of the camera among a list's columns; none without `fx`.

    Raises:
        UserError: the camera is incomplete, or given twice.
    """
    present = tuple(name for name in _NUMBERS if name in names)
    if "fx" not in present:
        if "fy" in present:
            raise UserError(f"'{path}' has a column 'fy' and no column 'fx': give both")
        return ()
    if "focal_px" in names:
        raise UserError(f"'{path}' has columns 'fx' and 'focal_px': give one of them")
    if ("cx" in present) != ("cy" in present):
        raise UserError(f"'{path}' has only one of the columns 'cx' and 'cy': give both, or none")
    return (*present, *(name for name in (_DISTORTION, _MODEL) if name in names))


def has_lens(names: Sequence[str]) -> bool:
    """Return whether columns of labels describe lenses with distortion."""
    return "fx" in names and not {_DISTORTION, _MODEL}.isdisjoint(names)


def check_camera_types(types: Mapping[str, pa.DataType], names: Sequence[str], path: str) -> None:
    """Check that the camera's columns hold numbers, lists of numbers, or text.

    Raises:
        UserError: a column has the wrong type.
    """
    for name in names:
        kind = types[name]
        if name == _MODEL or (name == _DISTORTION and is_list_type(kind)):
            continue  # rows are checked one by one
        fits = is_number_type(kind)
        if not (fits or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise UserError(f"column '{name}' of '{path}' is of type {kind}: expected numbers")


def listed_camera(
    row: Mapping[str, Any], names: Sequence[str], number: Callable[[Any, str], float]
) -> Camera | None:
    """Return a row's camera; None where it is empty.

    Args:
        row: of the list.
        names: from `camera_names`.
        number: converts a value, given its name, or raises a ValueError.

    Raises:
        ValueError: a value is missing or impossible.
    """
    given = {
        name: number(row[name], name) for name in names if name in _NUMBERS and not is_empty(row.get(name))
    }
    if not given:
        return None
    if "fx" not in given:
        raise ValueError(f"{next(iter(given))} is given without fx: expected both, or none")
    if ("cx" in given) != ("cy" in given):
        raise ValueError("only one of cx and cy is given: expected both, or none")
    fx = given["fx"]
    camera = Camera(
        fx,
        given.get("fy", fx),
        given.get("cx"),
        given.get("cy"),
        _model(row.get(_MODEL)) if _MODEL in names else "pinhole",
        _coefficients(row.get(_DISTORTION), number) if _DISTORTION in names else (),
    )
    camera.check()
    return camera


def _model(value: Any) -> LensModel:
    return "pinhole" if is_empty(value) else str(value).strip().lower()  # type: ignore[return-value]


def _coefficients(value: Any, number: Callable[[Any, str], float]) -> tuple[float, ...]:
    if isinstance(value, str):
        value = value.strip("[]() ").replace(",", " ").split()
    if value is not None and not isinstance(value, list):
        raise ValueError(f"the distortion is {value!r}: expected a list of numbers")
    return tuple(number(each, _DISTORTION) for each in value or ())
