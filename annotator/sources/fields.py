"""Numbers from other people's files: each has the shape it should have, or the error names its place."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.storage.files import open_file

_CHUNK = 1 << 20
_AFTER_ENTRY = re.compile(r"\s*([,\]])\s*")

#: Text that is cut inside a number or bracket fails this close to its end; an error further in is a real one.
_NEAR_END = 64


def numbers(value: Any, shape: tuple[int, ...], place: str) -> NDArray[np.float64]:
    """Nested lists or an array as an array of finite numbers.

    Args:
        value: from a file.
        shape: what it must have.
        place: the file and the field, for the error.

    Raises:
        UserError: anything else.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "iuf" or array.shape != shape:
        said = "x".join(map(str, shape)) + " numbers" if shape else "a number"
        raise UserError(f"{place}: expected {said}")
    if not np.isfinite(array).all():
        raise UserError(f"{place}: holds values that are not finite")
    return array.astype(np.float64)


def read_arrays(path: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A JSON file that is one list of arrays of one shape, as an array (n, *shape).

    Raises:
        UserError: the file is missing, cut short or not JSON, or an entry is something else; names the entry.
    """
    arrays = [
        numbers(entry, shape, f"{path}: entry {index}").astype(np.float32)
        for index, entry in enumerate(_json_entries(path))
    ]
    if not arrays:
        raise UserError(f"{path}: holds no entries")
    return np.stack(arrays)


def _json_entries(path: str) -> Iterator[Any]:
    """The entries of a JSON list, one at a time: a gigabyte of numbers, read at once, takes Python five."""
    decoder = json.JSONDecoder()
    with opened(path) as raw, io.TextIOWrapper(raw, "utf-8", errors="replace") as file:
        text = file.read(_CHUNK).lstrip()
        if not text.startswith("["):
            raise UserError(f"{path}: expected a JSON list")
        text = text[1:].lstrip()
        index, at = 0, 0
        while True:
            try:
                entry, end = decoder.raw_decode(text, at)
                separator = _AFTER_ENTRY.match(text, end)
                failed_at = end
            except json.JSONDecodeError as error:
                if index == 0 and text.startswith("]"):
                    return
                separator, failed_at = None, error.pos
            # A number that touches the end of the text may go on in the next chunk.
            if separator is None:
                more = file.read(_CHUNK) if len(text[failed_at:].strip()) <= _NEAR_END else ""
                if not more:
                    raise UserError(f"{path}: entry {index}: not JSON, or cut short")
                text, at = (text[at:] + more).lstrip(), 0
                continue
            yield entry
            index, at = index + 1, separator.end()
            if separator[1] == "]":
                return


def opened(path: str) -> Any:
    """A file to read from.

    Raises:
        UserError: it can't be.
    """
    try:
        return open_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
