"""Photos in a Parquet file, one per row, with their bytes in a column, as in Hugging Face data sets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import UserError, printable
from annotator.photos.decode import read_photo
from annotator.photos.errors import PhotoError
from annotator.sources.entry import Entry, Fault
from annotator.sources.faults import open_existing, unreadable
from annotator.storage.files import is_local, join

_BYTES_NAMES = ("image", "bytes", "jpg", "jpeg", "png", "webp", "image_bytes", "photo", "img")
_STRUCT_NAMES = ("image", "photo", "picture", "img")
#: LeRobot has a column per camera, with this prefix.
_CAMERA = "observation.image"

# Rows per batch: few for photos, which may have megabytes. Without a buffer size, pyarrow reads a whole row group.
_PHOTOS_AT_ONCE, _IDS_AT_ONCE = 16, 4096
_BUFFER_BYTES = 1 << 20

_MAGIC = b"PAR1"


def image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that hold photos: the first with a usual name, otherwise all in Hugging Face or LeRobot form.

    A photo is bytes, or a struct with a field `bytes`, and in Hugging Face's form also `path`.
    """
    types = dict(zip(schema.names, schema.types, strict=True))
    for name in dict.fromkeys((*_BYTES_NAMES, *_STRUCT_NAMES)):
        if name in types and (
            (name in _BYTES_NAMES and _is_bytes(types[name]))
            or (name in _STRUCT_NAMES and _has_bytes(types[name]))
        ):
            return [name]
    audio = _audio_columns(schema)
    return [
        name
        for name, kind in types.items()
        if name not in audio
        and ((_has_bytes(kind) and _has_path(kind)) or (name.startswith(_CAMERA) and _is_bytes(kind)))
    ]


def _audio_columns(schema: pa.Schema) -> set[str]:
    """Return the columns that Hugging Face's metadata declares as audio, which is stored like photos."""
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
    """Return the column that holds photos.

    Raises:
        PhotoError: no column holds photos, or more than one does.
    """
    columns = image_columns(schema)
    if not columns:
        raise PhotoError("not_a_photo", _no_photos(schema))
    if len(columns) > 1:
        names = ", ".join(f"'{name}'" for name in columns[:8])
        raise PhotoError(
            "unsupported", f"several columns hold photos ({names}): keep one of them, or name one 'image'"
        )
    return columns[0]


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(field.name == "bytes" and _is_bytes(field.type) for field in kind)


def list_parquet(path: str, file_id: str, id_column: str | None = None) -> Iterator[Entry]:
    """Yield one entry per row, from the file's footer and the column of ids; photos are not read.

    A row whose id is null gets the same id as without such a column.

    Raises:
        UserError: the column of ids is missing, or its type is neither text nor integer.
    """
    row = 0
    try:
        with open_existing(path) as file:
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
    """Open a Parquet file and read its footer.

    Raises:
        PhotoError: the file is not Parquet, or is damaged.
        OSError: the file can't be read.
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
            expected = "binary, or a struct with a field 'bytes'" if name in _STRUCT_NAMES else "binary"
            return f"the column '{name}' has the type {kind}; photos need the type {expected}"
    names = ", ".join(f"'{name}'" for name in schema.names[:20]) + (" ..." if len(schema) > 20 else "")
    wanted = ", ".join((*_BYTES_NAMES, "picture", f"{_CAMERA}*"))
    return f"no column holds photos; the columns are {names or 'none'}, supported names are {wanted}"


def _ids(table: pq.ParquetFile, column: str, path: str) -> Iterator[str | None]:
    schema = table.schema_arrow
    kind = dict(zip(schema.names, schema.types, strict=True)).get(column)
    if kind is None:
        raise UserError(
            f"'{path}' has no column '{column}' for ids; its columns are {', '.join(schema.names)}"
        )
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not text and not pa.types.is_integer(kind):
        raise UserError(f"'{path}': ids must be text or integers; the column '{column}' is of type {kind}")
    for batch in _batches(table, [column], None, _IDS_AT_ONCE):
        # As bytes: text that is not UTF-8 makes `as_py` fail.
        for value in batch.cast(pa.large_binary()) if text else batch:
            plain = value.as_py()
            yield plain.decode("utf-8", "backslashreplace") if text and plain is not None else _text(plain)


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)


def _batches(table: pq.ParquetFile, columns: list[str], group: int | None, rows: int) -> Iterator[pa.Array]:
    """Yield the values of a column, or of some of its fields, in batches of `rows`.

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


def read_parquet(path: str, positions: Sequence[tuple[int, ...]]) -> Iterator[bytes | PhotoError | None]:
    """Yield the photo at each (row group, row in it), in the order of `positions`; None for an empty row.

    If a row has a path instead of bytes, its file is read; the path is relative to the Parquet file's folder, or the
    one above.

    Each row group is read once, from its start to the last requested row. Photos requested out of order wait in memory.

    Raises:
        PhotoError: the file is damaged, or the row does not exist any more; earlier photos are still valid.
        OSError: the file can't be opened or read.
    """
    with open_existing(path) as file:
        photos = _photos(_opened(file), sorted(set(positions)))
        uses = Counter(positions)
        waiting: dict[tuple[int, ...], bytes | str | None] = {}
        for position in positions:
            while position not in waiting:
                earlier, photo = next(photos)
                waiting[earlier] = photo
            yield _followed(waiting[position], path)
            uses[position] -= 1
            if not uses[position]:
                del waiting[position]


def _followed(photo: bytes | str | None, table: str) -> bytes | PhotoError | None:
    """Return a row's bytes; if it only has a path, read that file."""
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
                    error.reason, f"the row has no bytes, and its path '{printable(photo)}' failed: {error}"
                )
    return None


def _photos(
    table: pq.ParquetFile, positions: list[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], bytes | str | None]]:
    """Yield the photos, or their paths, at sorted positions."""
    column = _image_column(table.schema_arrow)
    kind, columns = table.schema_arrow.field(column).type, [column]
    if pa.types.is_struct(kind):
        columns = [f"{column}.bytes"] + [f"{column}.path"] * _has_path(kind)
    wanted: dict[int, list[int]] = {}
    for group, row in positions:
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
    raise PhotoError("corrupt", "the Parquet file has fewer rows than its footer states")


def _bytes_and_paths(batch: pa.Array) -> tuple[Any, Any]:
    if not pa.types.is_struct(batch.type):
        return batch, None
    # The fields of a null struct become null only by flattening.
    fields = dict(zip((field.name for field in batch.type), batch.flatten(), strict=True))
    return fields["bytes"], fields.get("path")


def read_row(path: str, row_number: int) -> bytes | PhotoError | None:
    """Return the photo in a row, counted over the whole file; None for an empty row.

    Raises:
        PhotoError, OSError: as for `read_parquet`.
    """
    with open_existing(path) as file:
        table = _opened(file)
        row = row_number
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if 0 <= row < rows:
                return _followed(next(_photos(table, [(group, row)]))[1], path)
            row -= rows
    raise PhotoError("missing", f"the Parquet file has no row {row_number}")
