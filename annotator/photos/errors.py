"""The error for photos that can't be read, with a closed list of reasons."""

from __future__ import annotations

import errno
from typing import Literal

Reason = Literal[
    "missing",
    "no_permission",
    "io_error",
    "empty",
    "not_a_photo",
    "truncated",
    "corrupt",
    "too_large",
    "too_small",
    "unsupported",
    "box_outside",
]


class PhotoError(Exception):
    """A photo that can't be read: a `reason` from the closed list, and a message of one line."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason

    def __reduce__(self) -> tuple[type[PhotoError], tuple[Reason, str]]:
        return PhotoError, (self.reason, str(self))


def reading_error(error: OSError) -> PhotoError:
    """Return the error for a file that exists but can't be read, because of its name or its disk or store."""
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
        return PhotoError("missing", f"the file can't be read: {error.strerror}")
    return PhotoError("io_error", f"the file can't be read: {error.strerror or type(error).__name__}")
