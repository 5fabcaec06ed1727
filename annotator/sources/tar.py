"""Photos in a tar file, such as a shard of WebDataset. Nothing is extracted to disk, so member names do no harm."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO

from annotator.photos.formats import MAX_BYTES
from annotator.sources.entry import Entry, Fault, path_as_utf8
from annotator.sources.faults import open_existing, unreadable
from annotator.sources.suffixes import PHOTO_SUFFIXES

#: The limit for a member's header with the long names before it: a file may claim any size for them.
_MAX_HEADER_BYTES = 1 << 20

# Adjacent members are read in one request.
_MAX_GAP = 64 << 10
_MAX_READ = 16 << 20

_CUT = Fault("truncated", "the tar file is cut short")


def list_tar(path: str, file_id: str, skip: Callable[[str], None] | None = None) -> Iterator[Entry]:
    """Yield the photos of a tar file, in its order; reads headers but not photos.

    If the file ends early or is damaged, the last entry carries the fault for all remaining photos.

    Args:
        path: the file.
        file_id: its id.
        skip: called with the id of every member that is not a photo.
    """
    order = 0
    try:
        with open_existing(path) as file:
            for entry in _entries(path, file_id, file, skip):
                yield entry
                order += 1
        return
    except tarfile.ReadError as error:
        reason, message = error.args
        fault = Fault(reason, message)
    except OSError as error:
        fault = unreadable(error)
    yield Entry(path, file_id, order, fault=fault)


def _entries(path: str, file_id: str, file: IO[bytes], skip: Callable[[str], None] | None) -> Iterator[Entry]:
    size = file.seek(0, 2)
    counts: dict[int, int] = {}  # hash of a name -> count; the names themselves would take more memory
    order = 0
    for member in _members(file):
        name = path_as_utf8(member.name)
        if not _is_photo(member):
            if skip:
                skip(f"{file_id}#{name}")
            continue
        counts[hash(name)] = times = counts.get(hash(name), 0) + 1
        # This form can't collide with another member's name, which ends with a photo's suffix.
        inside = name if times == 1 else f"{name}@{times}"
        entry_id, at = f"{file_id}#{inside}", (member.offset_data, member.size)
        if sum(at) > size:
            fault = Fault("truncated", "the tar file is cut short within this photo")
            yield Entry(path, entry_id, order, inside=inside, fault=fault)
            return
        if member.size > MAX_BYTES:
            fault = Fault("too_large", f"the file has {member.size:,} bytes; the limit is {MAX_BYTES:,}")
            yield Entry(path, entry_id, order, inside=inside, fault=fault)
        else:
            yield Entry(path, entry_id, order, inside=inside, at=at)
        order += 1


def _is_photo(member: tarfile.TarInfo) -> bool:
    """Return whether a member is a regular, visible file with a photo's suffix; sparse files are in several pieces."""
    if not member.isreg() or member.issparse():
        return False
    path = PurePosixPath(member.name)
    hidden = any(part.startswith(".") and part not in (".", "..") for part in path.parts)
    return not hidden and path.suffix.lower() in PHOTO_SUFFIXES


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield all members up to the end mark.

    Raises:
        tarfile.ReadError: its args are a reason and a message: the file is not a tar, damaged, or cut short.
        OSError: the file can't be read.
    """
    file.seek(0)
    first = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    headers = _Headers(file)
    try:
        tar = tarfile.TarFile(fileobj=headers, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
    except OSError:
        raise
    except Exception:
        raise tarfile.ReadError(*_not_opened(first, headers.ended)) from None
    while True:
        position = tar.offset
        try:
            member = tar.next()
        except OSError:
            raise
        except Exception:  # a damaged header makes `tarfile` raise many kinds of errors
            raise tarfile.ReadError(*(_CUT if headers.ended else _damaged(position))) from None
        if member is None:
            if headers.ended:  # Python 3.11.2 takes an extended header that is cut short for the end
                raise tarfile.ReadError(*_CUT)
            break
        tar.members.clear()  # type: ignore[attr-defined]  # `tarfile` would keep all members
        if member.size < 0 or tar.offset <= member.offset:
            raise tarfile.ReadError(*_damaged(position))
        yield member
    _check_end(file, tar.offset)


def _not_opened(first: bytes, ended: bool) -> Fault:
    if not first:
        return Fault("empty", "the file is empty")
    if first[257:262] != b"ustar":
        return Fault("not_a_photo", "this is not a tar file")
    return _CUT if ended else _damaged(0)


def _damaged(position: int) -> Fault:
    return Fault("corrupt", f"the tar file is damaged: no header at byte {position}")


def _check_end(file: IO[bytes], position: int) -> None:
    """Check that the archive ends with a block of zeros; `tarfile` accepts anything that is not a header as the end."""
    file.seek(position)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(*_CUT)
    if block.strip(b"\0"):
        raise tarfile.ReadError(*_damaged(position))
    if file.read(_MAX_GAP).strip(b"\0"):  # other readers silently ignore such data
        raise tarfile.ReadError("corrupt", "data follows the tar's end mark: were two tar files joined?")


class _Headers:
    """A file object for `tarfile` that allows only reads of at most a header's size."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.name, self.mode = "", "rb"
        self.ended = False  # the last read reached the end of the file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.HeaderError(f"a header of {size} bytes")
        data = self._file.read(size)
        self.ended = len(data) < size
        return data


def read_tar(path: str, positions: Sequence[tuple[int, ...]]) -> Iterator[bytes]:
    """Yield the bytes at each (offset, size), in the order of `positions`; fewer bytes if the file has become shorter.

    Raises:
        OSError: the file can't be opened or read.
    """
    with open_existing(path) as file:
        for group in _groups(positions):
            start, end = group[0][0], sum(group[-1])
            file.seek(start)
            data = file.read(end - start)
            for offset, size in group:
                yield data[offset - start : offset - start + size]


def _groups(positions: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Yield runs of positions to read in one request."""
    group: list[tuple[int, ...]] = []
    for position in positions:
        if group:
            gap = position[0] - sum(group[-1])
            if not 0 <= gap < _MAX_GAP or sum(position) - group[0][0] > _MAX_READ:
                yield group
                group = []
        group.append(position)
    if group:
        yield group
