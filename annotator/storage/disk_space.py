"""Errors of files that are too large for their disk or the shell's limit."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path

from annotator.errors import UserError

_DISK_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class DiskFullError(UserError, OSError):
    """A file does not fit; `filename` is its path. A retry fails until a user frees space."""

    def __str__(self) -> str:
        return f"'{self.filename}': {self.strerror}"


def unnamed_path() -> Path:
    """Return a path that stands for temporary files without a name, in the folder that `TMPDIR` chooses."""
    return Path(tempfile.gettempdir(), "amvur-*")


@contextmanager
def name_in_errors(
    path: Path,
    size: int | None = None,
    unfinished: Path | None = None,
    written: Callable[[], int] | None = None,
) -> Iterator[None]:
    """Name the file in errors of writing it.

    Args:
        path: the file. size: its final bytes, if known.
        unfinished: where it is written first; default `path`.
        written: returns the bytes given to it so far, if `size` is unknown; default: those that fitted.

    Raises:
        DiskFullError: it exceeds the disk, a quota or the shell's limit.
        OSError: any other error, with the file's name.
    """
    try:
        yield
    except DiskFullError:  # of another file, written within
        raise
    except OSError as error:
        if isinstance(error.__context__, DiskFullError):  # this file failed too, while it was closed
            raise error.__context__ from None
        if error.errno in _DISK_FULL:
            raise DiskFullError(
                error.errno, _shortage(error.errno, size, unfinished or path, written), str(path)
            ) from None
        if error.errno is not None and error.filename is None and not isinstance(error, ConnectionError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextmanager
def written(
    file: BufferedWriter, path: Path, size: int | None = None, unfinished: Path | None = None
) -> Iterator[BufferedWriter]:
    """Write a new file to the disk and close it after the block; arguments and errors are those of
    `name_in_errors`."""
    try:
        with name_in_errors(path, size, unfinished, file.tell):
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        file.raw.close()  # first, because its buffer would fail again
        raise
    finally:
        file.close()


def _shortage(number: int, size: int | None, path: Path, written: Callable[[], int] | None) -> str:
    """Return the missing space and the fix."""
    if size is None:
        known = 0
        with suppress(OSError, ValueError):  # ValueError: the file is closed
            known = written() if written else path.stat().st_size
        needed = f"it needs at least {known:,} bytes"
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
