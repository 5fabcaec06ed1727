"""Conditional writes to a store, which fail if the file has changed: `If-None-Match` and `If-Match` of S3.

Not every store supports them: some refuse the header, others ignore it and write. Callers must read the file again.
"""

from __future__ import annotations

from typing import Any

from annotator.storage.remote import S3, error_code, with_retries

#: Error codes of stores after another write came first.
_CONFLICTS = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404")

#: Error codes of stores, or of older botocore, without conditional writes.
_UNKNOWN = ("NotImplemented", "501", "InvalidArgument", "InvalidRequest", "ParamValidationError")


class OvertakenError(Exception):
    """Another write came first; nothing was written."""


def version_of(url: str) -> str | None:
    """Return the ETag of a file in an S3 store; None for a missing file or another kind of store."""
    if not url.startswith(S3):
        return None
    try:
        info: dict[str, Any] = with_retries(url, lambda filesystem, path: filesystem.info(path))
    except FileNotFoundError:
        return None
    return info.get("ETag")


def put_if_unchanged(url: str, data: bytes, version: str | None) -> str | None:
    """Write a file if its ETag is still `version` (None: if it does not exist); return its new ETag or None.

    A store without conditional writes is written unconditionally.

    Raises:
        OvertakenError: the store has a newer file. It may be our own, after a put whose response was lost.
        OSError: as for `write_atomic`.
    """
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}

    def put(filesystem: Any, path: str) -> dict[str, Any] | None:
        if not url.startswith(S3):
            filesystem.pipe_file(path, data)
            return {}
        try:
            return filesystem.pipe_file(path, data, **condition) or {}
        except Exception as error:
            code = error_code(error)
            if code in _CONFLICTS:
                return None
            if code in _UNKNOWN:
                return filesystem.pipe_file(path, data) or {}
            raise

    written = with_retries(url, put)
    if written is None:
        raise OvertakenError(url)
    return written.get("ETag")
