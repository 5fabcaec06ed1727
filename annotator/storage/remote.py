"""Access files at URLs (S3 and everything else fsspec supports), with retries, two kinds of errors and paged listings.

A store may be slow, overloaded or briefly unavailable. Requests that may still succeed are retried with growing pauses
for `RETRY_LIMIT_S` seconds. The libraries' own retries are off, so that each retry is counted once (`take_retries`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import IO, Any, TypeVar

import fsspec

from annotator.errors import UserError, first_line

#: Total time for retries of a failing request, and timeout of one response, in seconds.
RETRY_LIMIT_S = 90.0
ANSWER_S = 20.0

#: Starts of URLs of S3 stores.
S3 = ("s3://", "s3a://")

_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0

#: A refusal that comes later is put down to a sleep of the machine. Stores allow signatures of the last 5 to 15
#: minutes; few requests take that long awake, and for those one more try does no harm.
_SLEPT_S = 300.0

_patience_s: ContextVar[float] = ContextVar("patience_s", default=RETRY_LIMIT_S)
_retries: Counter[str] = Counter()
_counting = threading.Lock()

_Answer = TypeVar("_Answer")


class RefusedError(UserError, PermissionError):
    """A request that a store refuses, so that a retry is useless.

    Also an OSError, so that callers that read many files can skip one.
    """

    def __str__(self) -> str:
        return f"'{self.filename}': {self.strerror}"


def with_retries(url: str, do: Callable[[Any, str], _Answer]) -> _Answer:
    """Return `do(filesystem, path)`, with retries while the request may still succeed.

    Raises:
        UserError: the kind of URL is not supported, or its library is not installed.
        RefusedError: no permission, no credentials, or a wrong clock.
        FileNotFoundError: the file or bucket does not exist.
        OSError: any other error that lasts as long as retries (`retry_limit`); names the URL.
    """
    deadline = time.monotonic() + _patience_s.get()
    pause, may_sign_again = _PAUSE_S, True
    while True:
        began = time.time()
        try:
            return do(*_filesystem(url))
        except (UserError, MemoryError):
            raise
        except ImportError as error:
            raise UserError(f"'{without_secrets(url)}': {without_secrets(first_line(error))}") from None
        except Exception as error:
            problem = _problem(url, error)
            # Stores refuse old signatures, and this one may be from before a sleep of the machine.
            slept = isinstance(problem, RefusedError) and time.time() - began > _SLEPT_S and may_sign_again
            if slept:
                may_sign_again = False
            elif isinstance(problem, (FileNotFoundError, RefusedError)):
                raise problem from None
            elif time.monotonic() + pause > deadline:
                raise problem from error
            with _counting:
                _retries["machine slept" if slept else error_code(error)] += 1
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, _LONGEST_PAUSE_S)


@contextlib.contextmanager
def retry_limit(seconds: float) -> Iterator[None]:
    """Set the total time for retries in this thread and block, in seconds; short where a user waits."""
    before = _patience_s.set(seconds)
    try:
        yield
    finally:
        _patience_s.reset(before)


def take_retries() -> dict[str, int]:
    """Return and reset this process's number of retries per error of the store."""
    with _counting:
        taken = dict(_retries)
        _retries.clear()
    return taken


def without_secrets(text: str) -> str:
    """Return a URL, or a text with URLs, for messages: without passwords, keys and signatures."""
    return re.sub(r"(?<=://)[^/@\s'\"]*@|(?<=\w)\?[^\s'\"]*=[^\s'\"]*", "", text) if "://" in text else text


def files_below(url: str, start: str = "") -> Iterator[str]:
    """Yield the paths below a folder of a store, relative to it, in the order of `str`; on S3 one page at a time.

    `start` is a common prefix of the wanted paths; stores that support it skip the others.
    """
    if url.startswith(S3):
        yield from _pages_of_s3(url, start)
    else:
        yield from _walk(url.rstrip("/"), "")


class RemoteFile(io.RawIOBase):
    """A seekable file in a store; each read is a separate request."""

    def __init__(self, url: str, size: int | None = None) -> None:
        """Open the file; its size in bytes, if not given, takes a request."""
        self._url, self._position = url, 0
        self._size: int = (
            with_retries(url, lambda filesystem, path: filesystem.info(path)["size"])
            if size is None
            else size
        )

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set and return the position, as `io.IOBase.seek` does."""
        self._position = offset + {0: 0, 1: self._position, 2: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, as `io.RawIOBase.readinto` does."""
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        data = self._read(self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, start: int, end: int) -> bytes:
        return read_part(self._url, start, end)

    def readall(self) -> bytes:
        """Return the rest of the file in one request; the base class would request 8 KiB at a time."""
        if self._position >= self._size:
            return b""
        data = self._read(self._position, self._size)
        self._position += len(data)
        return data


def open_remote(url: str, ahead: int) -> IO[bytes]:
    """Open a file that fetches at least `ahead` bytes per request."""
    return io.BufferedReader(RemoteFile(url), ahead)


def read_all(url: str) -> bytes:
    """Return all bytes of a file."""
    # s3fs reads large files in parts, and leaks the connection of a failed part.
    options = {"max_concurrency": 1} if url.startswith(S3) else {}
    return with_retries(url, lambda filesystem, path: filesystem.cat_file(path, **options))


def read_part(url: str, start: int, end: int) -> bytes:
    """Return bytes `start` to `end` of a file; fewer if it ends earlier."""

    def read(filesystem: Any, path: str) -> bytes:
        try:
            return filesystem.cat_file(path, start=start, end=end)
        except OSError as error:
            if error_code(error) in ("InvalidRange", "416"):  # S3's response for an empty file
                return b""
            raise

    return with_retries(url, read)


def _filesystem(url: str) -> tuple[Any, str]:
    options: dict[str, Any] = {}
    if url.startswith(S3):
        defaults = {
            "read_timeout": ANSWER_S,
            "connect_timeout": ANSWER_S / 2,
            "retries": {"total_max_attempts": 1},
        }
        user_settings = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options = {"config_kwargs": {**defaults, **user_settings}, "use_listings_cache": False}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    if options:
        filesystem.retries = 1
    return filesystem, path


def _problem(url: str, error: Exception) -> OSError:
    message = without_secrets(first_line(error))
    # NoSuchUpload: the last response to an upload of a large file was lost, but the file is complete.
    if isinstance(error, FileNotFoundError) and error_code(error) != "NoSuchUpload":
        return FileNotFoundError(errno.ENOENT, message, without_secrets(url))
    refused = getattr(error, "status", None) in (400, 401, 403, 410)  # HTTP status
    if refused or isinstance(error, (PermissionError, ValueError)) or "Credential" in type(error).__name__:
        return RefusedError(errno.EACCES, message, without_secrets(url))
    return OSError(getattr(error, "errno", None) or errno.EIO, message, without_secrets(url))


def error_code(error: BaseException) -> str:
    """Return the store's error code, or the exception's class name without one."""
    link: BaseException | None = error
    while link is not None:
        response = getattr(link, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code") or "error")
        link = link.__cause__
    return type(error).__name__


def _pages_of_s3(url: str, start: str) -> Iterator[str]:
    """Yield the paths from pages of `list_objects_v2`: s3fs would collect the whole listing before the first name."""
    _, path = _filesystem(url)
    bucket, _, prefix = path.partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    further: dict[str, str] = {}
    while True:

        def page(filesystem: Any, _: str, further: dict[str, str] = further) -> dict[str, Any]:
            return filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix + start, **further)

        answer = with_retries(url, page)
        for item in answer.get("Contents", []):
            if not item["Key"].endswith("/"):
                yield item["Key"][len(prefix) :]
        if not answer.get("IsTruncated"):
            return
        further = {"ContinuationToken": answer["NextContinuationToken"]}


def _walk(folder: str, below: str) -> Iterator[str]:
    """Yield paths folder by folder, in the order of one sorted list of all paths."""

    def listed(filesystem: Any, path: str) -> list[tuple[str, bool]]:
        filesystem.invalidate_cache(path)
        items = filesystem.ls(path, detail=True)
        return [(item["name"].rstrip("/").rsplit("/", 1)[-1], item["type"] == "directory") for item in items]

    names = [name + "/" * is_folder for name, is_folder in with_retries(folder, listed)]
    for name in sorted(names):
        if name.endswith("/"):
            yield from _walk(f"{folder}/{name[:-1]}", below + name)
        else:
            yield below + name
