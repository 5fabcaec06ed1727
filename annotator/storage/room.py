"""Files that are too large for their disk, or for the shell's limit."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from annotator.errors import UserError

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class NoRoomError(UserError, OSError):
    """A file that has no room; `filename` is its path. Trying again is of no use until a user makes room."""

    def __str__(self) -> str:
        return f"'{self.filename}': {self.strerror}"


@contextmanager
def naming(path: Path, size: int | None = None, unfinished: Path | None = None) -> Iterator[None]:
    """Name the file in errors of writing it.

    Args:
        path: the file. size: how many bytes it will have, if that is settled.
        unfinished: where it is written until then; `path` if none.

    Raises:
        NoRoomError: the disk, a quota or the shell's limit has no room for it.
        OSError: any other error, with the file's name.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise NoRoomError(
                error.errno, _shortage(error.errno, size, unfinished or path), str(path)
            ) from None
        if error.errno is not None and error.filename is None and not isinstance(error, ConnectionError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _shortage(number: int, size: int | None, place: Path) -> str:
    """Return what is lacking, and what would mend it."""
    if size is None:
        with suppress(OSError):
            size = place.stat().st_size
        needed = f"it needs more than {size or 0:,} bytes"
    else:
        needed = f"it needs {size:,} bytes"
    if number == errno.EFBIG:
        return f"{needed}, more than a file may have here (see `ulimit -f`): raise the limit"
    if number == errno.EDQUOT:
        return f"{needed}, more than the quota has left: make room"
    free = 0
    with suppress(OSError, AttributeError):
        disk = os.statvfs(place.parent)
        free = disk.f_bavail * disk.f_frsize
    return f"{needed}, and the disk has {free:,} left: make room"
