"""Photos in a tar file, such as a shard of WebDataset. Nothing is ever extracted: a name is only a name."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO

from annotator.photos.formats import MAX_BYTES
from annotator.sources.entry import Entry, Fault, readable
from annotator.sources.faults import open_there, unreadable
from annotator.sources.suffixes import PHOTO_SUFFIXES

#: A member's header and the long names before it; a file may claim any size for them.
_MAX_HEADER_BYTES = 1 << 20

# Neighbours are read in one go.
_MAX_GAP = 64 << 10
_MAX_READ = 16 << 20

_CUT = Fault("truncated", "the tar file is cut short")


def list_tar(path: str, file_id: str, skip: Callable[[str], None] | None = None) -> Iterator[Entry]:
    """The photos of a tar file, in its order; headers are read one by one, photos are not.

    A file that ends early or is damaged has a last entry that says so, for whatever else was in it.

    Args:
        path: the file.
        file_id: its id.
        skip: told the id of every member that is no photo.
    """
    order = 0
    try:
        with open_there(path) as file:
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
    seen: dict[int, int] = {}  # hash of a name -> how often; the names would take more memory
    order = 0
    for member in _members(file):
        name = readable(member.name)
        if not _is_photo(member):
            if skip:
                skip(f"{file_id}#{name}")
            continue
        seen[hash(name)] = times = seen.get(hash(name), 0) + 1
        # No photo's own name can end so: it would not have a photo's suffix.
        inside = name if times == 1 else f"{name}@{times}"
        entry_id, at = f"{file_id}#{inside}", (member.offset_data, member.size)
        if sum(at) > size:
            fault = Fault("truncated", "the tar file is cut short within this photo")
            yield Entry(path, entry_id, order, inside=inside, fault=fault)
            return
        if member.size > MAX_BYTES:
            fault = Fault("too_large", f"the file has {member.size:,} bytes; at most {MAX_BYTES:,} are read")
            yield Entry(path, entry_id, order, inside=inside, fault=fault)
        else:
            yield Entry(path, entry_id, order, inside=inside, at=at)
        order += 1


def _is_photo(member: tarfile.TarInfo) -> bool:
    """A regular file with a photo's suffix, not hidden; a sparse one is not stored in one piece."""
    if not member.isreg() or member.issparse():
        return False
    path = PurePosixPath(member.name)
    hidden = any(part.startswith(".") and part not in (".", "..") for part in path.parts)
    return not hidden and path.suffix.lower() in PHOTO_SUFFIXES


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """All members up to the end mark.

    Raises:
        tarfile.ReadError: of a reason and a message: the file is no tar, damaged, or ends before its end mark.
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
        except Exception:  # a damaged header breaks `tarfile` in many ways
            raise tarfile.ReadError(*(_CUT if headers.ended else _damaged(position))) from None
        if member is None:
            break
        tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
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
    return Fault("corrupt", f"the tar file is damaged: there is no header at byte {position}")


def _check_end(file: IO[bytes], position: int) -> None:
    """`tarfile` takes anything that is no header for the end; only a block of zeros is."""
    file.seek(position)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(*_CUT)
    if block.strip(b"\0"):
        raise tarfile.ReadError(*_damaged(position))
    if file.read(_MAX_GAP).strip(b"\0"):  # other readers would not see it either, and not say so
        raise tarfile.ReadError("corrupt", "more follows the tar's end mark: were two tar files joined?")


class _Headers:
    """What `tarfile` may do with the file: reads of a header's size."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.name, self.mode = "", "rb"
        self.ended = False  # more was asked for than there is

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.HeaderError(f"a header of {size} bytes")
        data = self._file.read(size)
        self.ended = len(data) < size
        return data


def read_tar(path: str, places: Sequence[tuple[int, ...]]) -> Iterator[bytes]:
    """The bytes at each (offset, size), in the order asked; fewer where the file has become shorter.

    Raises:
        OSError: the file can't be opened or read.
    """
    with open_there(path) as file:
        for group in _groups(places):
            start, end = group[0][0], sum(group[-1])
            file.seek(start)
            data = file.read(end - start)
            for offset, size in group:
                yield data[offset - start : offset - start + size]


def _groups(places: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Runs of places that one read is to get."""
    group: list[tuple[int, ...]] = []
    for place in places:
        if group:
            gap = place[0] - sum(group[-1])
            if not 0 <= gap < _MAX_GAP or sum(place) - group[0][0] > _MAX_READ:
                yield group
                group = []
        group.append(place)
    if group:
        yield group
