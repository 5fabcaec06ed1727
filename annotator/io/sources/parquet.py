"""Photos in a Parquet file, one a row, their bytes in a column; such as Hugging Face's data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import UserError
from annotator.io.decode import PhotoError
from annotator.io.entry import Entry, Fault
from annotator.io.sources.faults import open_there, unreadable

_BYTES_NAMES = ("image", "bytes", "jpg", "jpeg", "png", "webp", "image_bytes", "photo")
_STRUCT_NAMES = ("image", "photo", "picture")

# Rows at once: photos may have megabytes. Without a buffer's size, pyarrow reads a whole row group.
_PHOTOS_AT_ONCE, _IDS_AT_ONCE = 16, 4096
_BUFFER_BYTES = 1 << 20

_MAGIC = b"PAR1"


def image_column(schema: pa.Schema) -> str | None:
    """The name of the column that holds photos' bytes, as bytes or as a struct with a field `bytes`."""
    types = dict(zip(schema.names, schema.types, strict=True))
    for name in (*_BYTES_NAMES, "picture"):
        if name in types and (
            (name in _BYTES_NAMES and _is_bytes(types[name]))
            or (name in _STRUCT_NAMES and _has_bytes(types[name]))
        ):
            return name
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(field.name == "bytes" and _is_bytes(field.type) for field in kind)


def list_parquet(path: str, file_id: str, id_column: str | None = None) -> Iterator[Entry]:
    """One entry a row, from the file's footer alone, or from the column of ids; photos are not read.

    A row whose id is null has the one it would have without such a column.

    Raises:
        UserError: there is no such column of ids, or it has neither text nor whole numbers.
    """
    row = 0
    try:
        with open_there(path) as file:
            table = _opened(file)
            if image_column(table.schema_arrow) is None:
                raise PhotoError("not_a_photo", _no_photos(table.schema_arrow))
            ids = _ids(table, id_column, path) if id_column else iter(())
            for group in range(table.num_row_groups):
                for row_in_group in range(table.metadata.row_group(group).num_rows):
                    entry_id = next(ids, None) or f"{file_id}#{row}"
                    yield Entry(path, entry_id, row, inside=str(row), at=(group, row_in_group))
                    row += 1
        return
    except PhotoError as error:
        fault = Fault(error.reason, str(error))
    except OSError as error:
        fault = unreadable(error)
    yield Entry(path, file_id, row, fault=fault)


def _opened(file: IO[bytes]) -> pq.ParquetFile:
    """The file, its footer read.

    Raises:
        PhotoError: it is no Parquet file, or damaged.
        OSError: it can't be read.
    """
    try:
        return pq.ParquetFile(file, buffer_size=_BUFFER_BYTES)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
    start, size = (file.seek(0), file.read(4))[1], file.seek(0, 2)
    file.seek(max(0, size - 4))
    if not size:
        raise PhotoError("empty", "the file is empty")
    if start != _MAGIC:
        raise PhotoError("not_a_photo", "this is not a Parquet file")
    if file.read() != _MAGIC:
        raise PhotoError("truncated", "the Parquet file is cut short")
    raise PhotoError("corrupt", "the Parquet file's footer is damaged")


def _no_photos(schema: pa.Schema) -> str:
    for name, kind in zip(schema.names, schema.types, strict=True):
        if name in _BYTES_NAMES or name in _STRUCT_NAMES:
            what = "bytes, or a struct with a field 'bytes'" if name in _STRUCT_NAMES else "bytes"
            return f"the column '{name}' is of the type {kind}; photos are of the type binary: {what}"
    names = ", ".join(f"'{name}'" for name in schema.names[:20]) + (" ..." if len(schema) > 20 else "")
    wanted = ", ".join((*_BYTES_NAMES, "picture"))
    return f"no column holds photos; there are {names or 'none'}, and photos are looked for in {wanted}"


def _ids(table: pq.ParquetFile, column: str, path: str) -> Iterator[str | None]:
    schema = table.schema_arrow
    kind = dict(zip(schema.names, schema.types, strict=True)).get(column)
    if kind is None:
        raise UserError(f"'{path}' has no column '{column}' for ids; it has {', '.join(schema.names)}")
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not text and not pa.types.is_integer(kind):
        raise UserError(f"'{path}': ids are text or whole numbers; the column '{column}' is of type {kind}")
    for batch in _batches(table, column, None, _IDS_AT_ONCE):
        # As bytes: text may be no UTF-8, and Python would not take it.
        for value in batch.cast(pa.large_binary()) if text else batch:
            plain = value.as_py()
            yield plain.decode("utf-8", "backslashreplace") if text and plain is not None else _text(plain)


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)


def _batches(table: pq.ParquetFile, column: str, group: int | None, rows: int) -> Iterator[pa.Array]:
    """A column's values, some rows at a time.

    Raises:
        PhotoError: the file is damaged.
    """
    where = {} if group is None else {"row_groups": [group]}
    try:
        for batch in table.iter_batches(rows, columns=[column], use_threads=False, **where):
            yield batch.column(0)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise PhotoError("corrupt", "the Parquet file's data is damaged") from error


def read_parquet(path: str, places: Sequence[tuple[int, ...]]) -> Iterator[bytes | None]:
    """The photo at each (row group, row in it), in the order asked; None where there is none.

    A row group is read once, from its start to the last row asked. Photos asked out of order wait in memory.

    Raises:
        PhotoError: the file is damaged, or has no such row any more; what came before is right.
        OSError: it can't be opened or read.
    """
    with open_there(path) as file:
        found = _photos(_opened(file), sorted(set(places)))
        uses = Counter(places)
        waiting: dict[tuple[int, ...], bytes | None] = {}
        for place in places:
            while place not in waiting:
                earlier, photo = next(found)
                waiting[earlier] = photo
            yield waiting[place]
            uses[place] -= 1
            if not uses[place]:
                del waiting[place]


def _photos(
    table: pq.ParquetFile, places: list[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], bytes | None]]:
    """The photos at sorted places."""
    column = image_column(table.schema_arrow)
    if column is None:
        raise PhotoError("not_a_photo", _no_photos(table.schema_arrow))
    if pa.types.is_struct(table.schema_arrow.field(column).type):
        column += ".bytes"
    wanted: dict[int, list[int]] = {}
    for group, row in places:
        wanted.setdefault(group, []).append(row)
    for group, rows in wanted.items():
        if group >= table.num_row_groups or rows[-1] >= table.metadata.row_group(group).num_rows:
            raise PhotoError("missing", "the Parquet file has no such row any more")
        yield from (((group, row), photo) for row, photo in _in_group(table, column, group, rows))


def _in_group(
    table: pq.ParquetFile, column: str, group: int, rows: list[int]
) -> Iterator[tuple[int, bytes | None]]:
    left, start = iter(rows), 0
    row = next(left, None)
    for batch in _batches(table, column, group, _PHOTOS_AT_ONCE):
        # A struct that is null as a whole has bytes that are null only once flattened.
        values: Any = batch.flatten()[0] if pa.types.is_struct(batch.type) else batch
        while row is not None and row < start + len(values):
            yield row, values[row - start].as_py()
            row = next(left, None)
        if row is None:
            return
        start += len(values)
    raise PhotoError("corrupt", "the Parquet file has fewer rows than it says")


def read_row(path: str, row_number: int) -> bytes | None:
    """The photo in a row, counted over the whole file; None where there is none.

    Raises:
        PhotoError, OSError: as `read_parquet`.
    """
    with open_there(path) as file:
        table = _opened(file)
        row = row_number
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if 0 <= row < rows:
                return next(_photos(table, [(group, row)]))[1]
            row -= rows
    raise PhotoError("missing", f"the Parquet file has no row {row_number}")
