"""Values of a list's rows, the types of its columns, and the error of an invalid row."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa


class BadRowError(ValueError):
    """An invalid row of a list, with a message of one line."""


def is_number_type(kind: pa.DataType) -> bool:
    """Return whether a column's type is that of numbers."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def is_list_type(kind: pa.DataType) -> bool:
    """Return whether a column's type is that of lists, of any or of one length."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_empty(value: Any) -> bool:
    """Return whether a value is missing, or blank text."""
    return value is None or (isinstance(value, str) and not value.strip())


def short_repr(value: Any) -> str:
    """Return a value for a message, of at most 63 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def finite_number(value: Any, field: str) -> float:
    """Return a value as a number.

    Raises:
        BadRowError: it is not a finite number; the message names the field.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRowError(f"{field} has {short_repr(value)}: expected a finite number")
    return number
