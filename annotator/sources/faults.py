"""Opening a file that holds photos, and what becomes of one that can't be: one fault."""

from __future__ import annotations

import errno
from typing import IO

from annotator.photos.errors import reading_error
from annotator.sources.entry import Fault
from annotator.storage.files import open_file


def unreadable(error: OSError) -> Fault:
    """The fault of a file that the system, or the store it lies in, does not give out."""
    if isinstance(error, PermissionError):
        return Fault("no_permission", "no permission to read the file")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Fault("missing", "no such file")
    why = reading_error(error)
    return Fault(why.reason, str(why))


def open_there(path: str) -> IO[bytes]:
    """A file to read from.

    Raises:
        OSError: there is none, whatever else its path is, or it can't be read.
    """
    try:
        return open_file(path)
    except ValueError:  # a zero byte
        raise FileNotFoundError(errno.ENOENT, "no such file") from None
