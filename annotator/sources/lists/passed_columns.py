"""The columns of a list that pass through to the labels: their names, types and values."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import pyarrow as pa

from annotator.labels.schema import label_schema
from annotator.sources.entry import path_as_utf8
from annotator.sources.lists.rows import EXACT
from annotator.sources.lists.values import BadRowError, short_repr


def passed_names(names: Collection[str], used: Collection[str]) -> dict[str, str]:
    """Return the output name of each column but the used ones: unique, and different from the label columns."""
    labels = set(label_schema(1, samples=1).names)
    taken = labels | set(names)
    passing = {}
    for name in names:
        if name not in used:
            to = name
            while to in taken and (to != name or to in labels):
                to = f"list_{to}"
            taken.add(to)
            passing[name] = to
    return passing


def passed(value: Any, kind: pa.DataType) -> Any:
    """Return a value as one of an output type.

    Raises:
        BadRowError: it does not fit the type.
    """
    if value is None:
        return None
    if pa.types.is_string(kind):
        return _text(value)
    if pa.types.is_boolean(kind):
        fits = isinstance(value, bool)
    elif pa.types.is_integer(kind):  # JSON has integers of any size
        fits = type(value) is int and (-(1 << 63) <= value < 1 << 63 or pa.types.is_uint64(kind))
    else:
        fits = type(value) is float or (type(value) is int and abs(value) <= EXACT)
    if not fits:
        raise BadRowError(f"{short_repr(value)} among values of type {kind}")
    return float(value) if pa.types.is_floating(kind) else value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return path_as_utf8(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (bool, int, float, list, dict)):
        return json.dumps(value, default=str)
    return str(value)


def passed_type(kind: pa.DataType) -> pa.DataType:
    """Return the output type of a column that passes through: plain numbers stay, the rest is text (nested: JSON)."""
    if pa.types.is_float16(kind):
        return pa.float32()
    is_plain = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return kind if is_plain else pa.string()
