"""Errors of files that are too large for their disk or the shell's limit."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from annotator.errors import UserError

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class NoRoomError(UserError, OSError):
    """A file does not fit; `filename` is its path. A retry fails until a user frees space."""

    def __str__(self) -> str:
        return f"'{self.filename}': {self.strerror}"


@contextmanager
def naming(path: Path, size: int | None = None, unfinished: Path | None = None) -> Iterator[None]:
    """Name the file in errors of writing it.

    Args:
        path: the file. size: its final bytes, if known.
        unfinished: where it is written first; default `path`.

    Raises:
        NoRoomError: it exceeds the disk, a quota or the shell's limit.
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


def _shortage(number: int, size: int | None, path: Path) -> str:
    """Return the missing space and the fix."""
    if size is None:
        with suppress(OSError):
            size = path.stat().st_size
        needed = f"it needs more than {size or 0:,} bytes"
    else:
        needed = f"it needs {size:,} bytes"
    if number == errno.EFBIG:
        return f"{needed}, above the limit on file sizes (`ulimit -f`): raise the limit"
    if number == errno.EDQUOT:
        return f"{needed}, more than the rest of the quota: free space"
    free = 0
    with suppress(OSError, AttributeError):
        disk = os.statvfs(path.parent)
        free = disk.f_bavail * disk.f_frsize
    return f"{needed}, and the disk has {free:,} free: free space"
