"""Open files that hold photos, and turn failures into faults."""

from __future__ import annotations

import errno
from typing import IO

from annotator.photos.errors import reading_error
from annotator.sources.entry import Fault
from annotator.storage.files import open_file


def unreadable(error: OSError) -> Fault:
    """Return the fault of a file that the system or its store fails to read."""
    if isinstance(error, PermissionError):
        return Fault("no_permission", "no permission to read the file")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Fault("missing", "no such file")
    photo_error = reading_error(error)
    return Fault(photo_error.reason, str(photo_error))


def open_existing(path: str) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        OSError: the file does not exist (even if the path is not a valid file name), or can't be read.
    """
    try:
        return open_file(path)
    except ValueError:  # a zero byte
        raise FileNotFoundError(errno.ENOENT, "no such file") from None
