"""Writes to a store that happen only if nobody else wrote meanwhile: `If-None-Match` and `If-Match` of S3.

Not every store knows them: some refuse the header, and some ignore it and write. Who depends on them looks afterwards.
"""

from __future__ import annotations

from typing import Any

from annotator.storage.remote import ask

_S3 = ("s3://", "s3a://")

#: What stores answer where another write came first.
_CONFLICTS = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404")

#: What they, or an older botocore, answer where they have no conditional writes.
_UNKNOWN = ("NotImplemented", "501", "InvalidArgument", "InvalidRequest", "ParamValidationError")


class OvertakenError(Exception):
    """Another write came first; nothing was written."""


def version_of(url: str) -> str | None:
    """The ETag of a file of an S3 store; None where there is no such file, or no such store."""
    if not url.startswith(_S3):
        return None
    try:
        found: dict[str, Any] = ask(url, lambda filesystem, path: filesystem.info(path))
    except FileNotFoundError:
        return None
    return found.get("ETag")


def put_if_unchanged(url: str, data: bytes, version: str | None) -> str | None:
    """Write a file if it still has the ETag `version`, or if there is none for None; its new ETag, if there is one.

    Where the store has no conditional writes it is written all the same.

    Raises:
        OvertakenError: the store has a newer file. Also after a put whose answer was lost: look whether it is ours.
        OSError: as for `write_whole`.
    """
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}

    def put(filesystem: Any, path: str) -> dict[str, Any] | None:
        if not url.startswith(_S3):
            filesystem.pipe_file(path, data)
            return {}
        try:
            return filesystem.pipe_file(path, data, **condition) or {}
        except Exception as error:
            answer = _answer(error)
            if answer in _CONFLICTS:
                return None
            if answer in _UNKNOWN:
                return filesystem.pipe_file(path, data) or {}
            raise

    written = ask(url, put)
    if written is None:
        raise OvertakenError(url)
    return written.get("ETag")


def _answer(error: BaseException) -> str:
    link: BaseException | None = error
    while link is not None:
        response = getattr(link, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code"))
        link = link.__cause__
    return type(error).__name__
