"""Read numbers from users' files, check their shape, and name the field in every error."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.storage.files import open_file

_CHUNK = 1 << 20
_AFTER_ENTRY = re.compile(r"\s*([,\]])\s*")

#: A parse error within this many characters of the end may come from a chunk boundary; one further in is a real error.
_NEAR_END = 64


def numbers(value: Any, shape: tuple[int, ...], where: str) -> NDArray[np.float64]:
    """Convert nested lists or an array to an array of finite float64 numbers.

    Args:
        value: from a file.
        shape: the required shape.
        where: the file and the field, for the error.

    Raises:
        UserError: the value has another shape, or is not finite numbers.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "iuf" or array.shape != shape:
        expected = "x".join(map(str, shape)) + " numbers" if shape else "a number"
        raise UserError(f"{where}: expected {expected}")
    if not np.isfinite(array).all():
        raise UserError(f"{where}: holds values that are not finite")
    return array.astype(np.float64)


def read_arrays(path: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Read a JSON file with one list of n arrays of the same shape; return an array (n, *shape), read-only.

    The array is in a temporary file without a name: as many vertices as FreiHAND's are hundreds of megabytes.

    Raises:
        UserError: the file is missing, cut short or not JSON, or an entry has another shape; names the entry.
    """
    count = 0
    with tempfile.TemporaryFile() as stored:
        for entry in _json_entries(path):
            stored.write(numbers(entry, shape, f"{path}: entry {count}").astype(np.float32).tobytes())
            count += 1
        if not count:
            raise UserError(f"{path}: holds no entries")
        stored.flush()
        return np.memmap(stored, np.float32, "r", shape=(count, *shape))


def _json_entries(path: str) -> Iterator[Any]:
    """Yield the entries of a JSON list one at a time: parsed at once, a gigabyte of JSON takes five of memory."""
    decoder = json.JSONDecoder()
    with opened_file(path) as raw, io.TextIOWrapper(raw, "utf-8", errors="replace") as file:
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
            # A number at the end of the text may continue in the next chunk.
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


def opened_file(path: str) -> Any:
    """Open a file for reading.

    Raises:
        UserError: the file does not exist or can't be read.
    """
    try:
        return open_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
