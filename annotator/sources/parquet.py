"""Photos in a Parquet file, one a row, their bytes in a column; such as Hugging Face's data sets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import UserError
from annotator.photos.decode import read_photo
from annotator.photos.errors import PhotoError
from annotator.sources.entry import Entry, Fault, plain
from annotator.sources.faults import open_there, unreadable
from annotator.storage.files import is_local, join

_BYTES_NAMES = ("image", "bytes", "jpg", "jpeg", "png", "webp", "image_bytes", "photo", "img")
_STRUCT_NAMES = ("image", "photo", "picture", "img")
#: LeRobot names a column for each camera.
_CAMERA = "observation.image"

# Rows at once: photos may have megabytes. Without a buffer's size, pyarrow reads a whole row group.
_PHOTOS_AT_ONCE, _IDS_AT_ONCE = 16, 4096
_BUFFER_BYTES = 1 << 20

_MAGIC = b"PAR1"


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold photos: the first of the usual names; else all that Hugging Face or LeRobot write.

    A photo is bytes, or a struct with a field `bytes`, beside which Hugging Face has `path`.
    """
    types = dict(zip(schema.names, schema.types, strict=True))
    for name in dict.fromkeys((*_BYTES_NAMES, *_STRUCT_NAMES)):
        if name in types and (
            (name in _BYTES_NAMES and _is_bytes(types[name]))
            or (name in _STRUCT_NAMES and _has_bytes(types[name]))
        ):
            return [name]
    sounds = _sounds(schema)
    return [
        name
        for name, kind in types.items()
        if name not in sounds
        and ((_has_bytes(kind) and _has_path(kind)) or (name.startswith(_CAMERA) and _is_bytes(kind)))
    ]


def _sounds(schema: pa.Schema) -> set[str]:
    """Columns that Hugging Face's own description calls sound, which are stored like photos."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name for name, feature in features.items() if feature.get("_type") == "Audio"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return set()


def _has_path(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(
        field.name == "path" and (pa.types.is_string(field.type) or pa.types.is_large_string(field.type))
        for field in kind
    )


def _image_column(schema: pa.Schema) -> str:
    """The one column that holds photos.

    Raises:
        PhotoError: there is none, or more than one.
    """
    found = image_columns(schema)
    if not found:
        raise PhotoError("not_a_photo", _no_photos(schema))
    if len(found) > 1:
        names = ", ".join(f"'{name}'" for name in found[:8])
        raise PhotoError(
            "unsupported", f"there are photos in {names}: keep one of these columns, or call it 'image'"
        )
    return found[0]


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
            _image_column(table.schema_arrow)
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
    wanted = ", ".join((*_BYTES_NAMES, "picture", f"{_CAMERA}*"))
    return f"no column holds photos; there are {names or 'none'}, and photos are looked for in {wanted}"


def _ids(table: pq.ParquetFile, column: str, path: str) -> Iterator[str | None]:
    schema = table.schema_arrow
    kind = dict(zip(schema.names, schema.types, strict=True)).get(column)
    if kind is None:
        raise UserError(f"'{path}' has no column '{column}' for ids; it has {', '.join(schema.names)}")
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not text and not pa.types.is_integer(kind):
        raise UserError(f"'{path}': ids are text or whole numbers; the column '{column}' is of type {kind}")
    for batch in _batches(table, [column], None, _IDS_AT_ONCE):
        # As bytes: text may be no UTF-8, and Python would not take it.
        for value in batch.cast(pa.large_binary()) if text else batch:
            plain = value.as_py()
            yield plain.decode("utf-8", "backslashreplace") if text and plain is not None else _text(plain)


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)


def _batches(table: pq.ParquetFile, columns: list[str], group: int | None, rows: int) -> Iterator[pa.Array]:
    """The values of a column, or of parts of it, some rows at a time.

    Raises:
        PhotoError: the file is damaged.
    """
    where = {} if group is None else {"row_groups": [group]}
    try:
        for batch in table.iter_batches(rows, columns=columns, use_threads=False, **where):
            yield batch.column(0)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise PhotoError("corrupt", "the Parquet file's data is damaged") from error


def read_parquet(path: str, places: Sequence[tuple[int, ...]]) -> Iterator[bytes | PhotoError | None]:
    """The photo at each (row group, row in it), in the order asked; None where there is none.

    A row without bytes may have a path, which is followed; it is relative to the file's folder, or the one above.

    A row group is read once, from its start to the last row asked. Photos asked out of order wait in memory.

    Raises:
        PhotoError: the file is damaged, or has no such row any more; what came before is right.
        OSError: it can't be opened or read.
    """
    with open_there(path) as file:
        found = _photos(_opened(file), sorted(set(places)))
        uses = Counter(places)
        waiting: dict[tuple[int, ...], bytes | str | None] = {}
        for place in places:
            while place not in waiting:
                earlier, photo = next(found)
                waiting[earlier] = photo
            yield _followed(waiting[place], path)
            uses[place] -= 1
            if not uses[place]:
                del waiting[place]


def _followed(photo: bytes | str | None, table: str) -> bytes | PhotoError | None:
    """A row's bytes; where it has but a path, those of that file."""
    if not isinstance(photo, str):
        return photo
    folder = table.rsplit("/", 1)[0]
    is_whole = "://" in photo or photo.startswith("/")
    places = [photo] if is_whole else [join(folder, photo)]
    if not is_whole and is_local(table):
        places.append(join(folder, "..", photo))
    for number, place in enumerate(places):
        try:
            return read_photo(place)
        except PhotoError as error:
            if error.reason != "missing" or number + 1 == len(places):
                return PhotoError(
                    error.reason, f"the row has no bytes, and of its path '{plain(photo)}': {error}"
                )
    return None


def _photos(
    table: pq.ParquetFile, places: list[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], bytes | str | None]]:
    """The photos at sorted places, or their paths."""
    column = _image_column(table.schema_arrow)
    kind, columns = table.schema_arrow.field(column).type, [column]
    if pa.types.is_struct(kind):
        columns = [f"{column}.bytes"] + [f"{column}.path"] * _has_path(kind)
    wanted: dict[int, list[int]] = {}
    for group, row in places:
        wanted.setdefault(group, []).append(row)
    for group, rows in wanted.items():
        if group >= table.num_row_groups or rows[-1] >= table.metadata.row_group(group).num_rows:
            raise PhotoError("missing", "the Parquet file has no such row any more")
        yield from (((group, row), photo) for row, photo in _in_group(table, columns, group, rows))


def _in_group(
    table: pq.ParquetFile, columns: list[str], group: int, rows: list[int]
) -> Iterator[tuple[int, bytes | str | None]]:
    left, start = iter(rows), 0
    row = next(left, None)
    for batch in _batches(table, columns, group, _PHOTOS_AT_ONCE):
        values, paths = _bytes_and_paths(batch)
        while row is not None and row < start + len(values):
            photo = values[row - start].as_py()
            yield row, paths[row - start].as_py() or None if photo is None and paths is not None else photo
            row = next(left, None)
        if row is None:
            return
        start += len(values)
    raise PhotoError("corrupt", "the Parquet file has fewer rows than it says")


def _bytes_and_paths(batch: pa.Array) -> tuple[Any, Any]:
    if not pa.types.is_struct(batch.type):
        return batch, None
    # A struct that is null as a whole has fields that are null only once flattened.
    fields = dict(zip((field.name for field in batch.type), batch.flatten(), strict=True))
    return fields["bytes"], fields.get("path")


def read_row(path: str, row_number: int) -> bytes | PhotoError | None:
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
                return _followed(next(_photos(table, [(group, row)]))[1], path)
            row -= rows
    raise PhotoError("missing", f"the Parquet file has no row {row_number}")
