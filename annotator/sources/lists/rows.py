"""Read the rows of a list, and determine its columns and their types.

Text and CSV are UTF-8. Other bytes may be part of file names, and are read as surrogates.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import UserError, first_line, printable
from annotator.sources.lists.roles import PLACE_NAMES, ROLES, check_names
from annotator.sources.suffixes import PHOTO_SUFFIXES
from annotator.storage.files import open_file
from annotator.storage.remote import without_secrets

Row = dict[str, Any]

#: The key with the error message of an unreadable row.
BROKEN = "\0broken"

#: The number of JSON rows that determine the columns.
FIRST_ROWS = 1000

#: The longest field of CSV, in characters: an unclosed quote would otherwise take the rest of the file.
_MAX_FIELD = 1 << 24

#: Every integer up to this is exact as a float.
EXACT = 1 << 53

#: Possible separators; spreadsheets write semicolons in locales with decimal commas.
_SEPARATORS = (",", ";", "\t", "|")

_JSON_PART = 1 << 20


@contextmanager
def user_errors(path: str) -> Iterator[None]:
    """Turn errors about the list as a whole into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except pa.ArrowException as error:
        raise UserError(
            f"'{_name(path)}' is not a Parquet file, or is damaged: {printable(first_line(error))}"
        ) from None
    except OSError as error:  # pyarrow's errors have no errno, and may have several lines
        raise UserError(
            f"'{_name(path)}' can't be read: {error.strerror or printable(first_line(error))}"
        ) from None


def _name(path: str) -> str:
    return printable(without_secrets(path))


def reader_of(path: str) -> tuple[Callable[[str], Iterator[Row]], dict[str, pa.DataType]]:
    """Return a function that yields a list's rows, and the types of its columns."""
    suffix = path.rsplit(".", 1)[-1].lower()
    if suffix == "parquet":
        with open_file(path) as file:
            schema = pq.read_schema(file)
        check_names(schema.names, _name(path))
        return _parquet_rows, dict(zip(schema.names, schema.types, strict=True))
    if suffix in ("jsonl", "ndjson", "json"):
        rows = _array_rows if _starts_an_array(path) else _json_rows
        return rows, _json_types(path, rows)
    if suffix == "txt":
        next(_lines(path), None)  # raises if the file can't be read
        return _text_rows, {"uri": pa.string()}
    separator = separator_of(path)
    header = next(_records(path, separator), [])
    if isinstance(header, str):
        raise UserError(f"'{_name(path)}' has no header: {header}")
    names = [name.strip() for name in header if name.strip()]
    check_names(names, _name(path))
    return partial(_csv_rows, separator=separator), dict.fromkeys(names, pa.string())


def separator_of(path: str) -> str:
    """Return the separator of a CSV file: the one that gives a header with a `PLACE_NAMES` column.

    Without such a header, return the default of the file's suffix.
    """
    default = "\t" if path.lower().endswith(".tsv") else ","
    for separator in (default, *_SEPARATORS):
        header = next(_records(path, separator), [])
        if isinstance(header, list) and {name.strip() for name in header} & set(PLACE_NAMES):
            return separator
    return default


def _lines(path: str) -> Iterator[str]:
    # Bytes that are not UTF-8 may be part of a file name on disk.
    with open_file(path, ahead=1 << 22) as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"'{_name(path)}' is UTF-16: save it as UTF-8")
        file.seek(0)
        yield from io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _text_rows(path: str) -> Iterator[Row]:
    return ({"uri": line.rstrip("\r\n")} for line in _lines(path) if line.strip())


def _records(path: str, separator: str) -> Iterator[list[str] | str]:
    """Yield the header of CSV, then each row or its error message; skip blank lines and Excel's `sep=;`."""
    csv.field_size_limit(_MAX_FIELD)
    ended = False

    def lines() -> Iterator[str]:
        nonlocal ended
        yield from _lines(path)
        ended = True

    reader = csv.reader(lines(), delimiter=separator)
    is_first = True
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield f"this row can't be read: {printable(str(error))}"
            continue
        if row is None:
            return
        if ended:  # only an open quote makes the reader consume all lines before it returns a row
            yield "this row has an opening quote without a closing one"
        elif row and not (is_first and row[0].lower().startswith("sep=")):
            yield row
        is_first = False


def _csv_rows(path: str, separator: str) -> Iterator[Row]:
    records = _records(path, separator)
    names = [name.strip() for name in next(records, [])]
    for record in records:
        if isinstance(record, str):
            yield {BROKEN: record}
            continue
        row = {name: value for name, value in zip(names, record, strict=False) if name}
        if len(record) < len(names) or any(record[len(names) :]):
            row[BROKEN] = f"this row has {len(record)} values where the header has {len(names)}"
        elif len(names) == 1 and (other := _other_separator(record[0])):
            row[BROKEN] = f"this row has more values than the header, separated by {other!r}"
        yield row


def _other_separator(value: str) -> str:
    """Return the separator that follows a photo's name in the only value of a row; empty if there is none."""
    for separator in _SEPARATORS:
        first, found, _ = value.partition(separator)
        if found and Path(first.strip()).suffix.lower() in PHOTO_SUFFIXES:
            return separator
    return ""


def _json_rows(path: str) -> Iterator[Row]:
    for line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield row if isinstance(row, dict) else {BROKEN: "this line is not a JSON object"}


def _starts_an_array(path: str) -> bool:
    return next((line.lstrip() for line in _lines(path) if line.strip()), "").startswith("[")


def _array_rows(path: str) -> Iterator[Row]:
    """Yield the elements of a JSON array, with only a part of it in memory."""
    decoder, lines = json.JSONDecoder(), _lines(path)
    text, at, ended = next((line.lstrip() for line in lines if line.strip()), ""), 1, False
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        try:
            if text[at : at + 1] == "]":
                return
            row, at = decoder.raw_decode(text, at)
            # A number may be split between two parts, but only objects are rows.
            yield row if isinstance(row, dict) else {BROKEN: "this element is not a JSON object"}
            continue
        except (ValueError, RecursionError):
            if ended:
                yield {BROKEN: "the JSON array is damaged from this row on, or cut short"}
                return
        more, wanted = [], max(_JSON_PART, len(text) - at)
        while wanted > 0 and (line := next(lines, None)) is not None:
            more.append(line)
            wanted -= len(line)
        ended = not more
        text, at = text[at:] + "".join(more), 0


def _json_types(path: str, rows: Callable[[str], Iterator[Row]]) -> dict[str, pa.DataType]:
    """Return the columns in the first rows, with their types."""
    kinds: dict[str, set[str]] = {}
    for number, row in enumerate(islice(rows(path), FIRST_ROWS)):
        if BROKEN in row:
            if not number:
                raise UserError(
                    f"'{_name(path)}' is neither JSON lines nor a JSON array of rows: its first row is not an object"
                )
            continue
        for name, value in row.items():
            kinds.setdefault(name, set()).update(() if value is None else (_kind(value),))
    return {name: _json_type(name, those) for name, those in kinds.items()}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "whole" if abs(value) <= EXACT else "long" if -(1 << 63) <= value < 1 << 63 else "text"
    if isinstance(value, list):
        numbers = all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in value)
        return "numbers" if numbers else "text"
    return "float" if isinstance(value, float) else "text"


def _json_type(name: str, kinds: set[str]) -> pa.DataType:
    """Return one type for all values of a column; integers become floats, because later rows may have fractions."""
    if not kinds:
        return pa.null()
    if kinds <= {"whole", "long"} and (kinds != {"whole"} or name in ROLES["id"]):
        return pa.int64()
    if kinds <= {"whole", "float"}:
        return pa.float64()
    only = next(iter(kinds)) if len(kinds) == 1 else "text"
    return {"bool": pa.bool_(), "numbers": pa.list_(pa.float64())}.get(only, pa.string())


def _parquet_rows(path: str) -> Iterator[Row]:
    with open_file(path, ahead=1 << 22) as file:
        # Without a buffer size, pyarrow reads a whole row group.
        table = pq.ParquetFile(file, buffer_size=1 << 20)
        for batch in table.iter_batches(4096, use_threads=False):
            columns = [_values(column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                yield dict(zip(batch.schema.names, values, strict=True))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_temporal(column.type):  # Python's dates have no nanoseconds, and no year 10000
        with suppress(pa.ArrowException):
            return column.cast(pa.string()).to_pylist()
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # text that is not UTF-8 may still name a file
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
