"""Files behind URLs (S3 and whatever else fsspec knows): errors of two kinds, one layer of retries, pages of listings.

A store may be slow, overloaded or away for a while. What may pass is asked again, with growing pauses, for
`PATIENCE_S`; the libraries' own retries are off, so that each is counted once (`take_retries`).
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

from annotator.errors import UserError

#: How long a store that answers wrongly or not at all is asked again, and how long one answer may take.
PATIENCE_S = 90.0
ANSWER_S = 20.0

_S3 = ("s3://", "s3a://")

_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0

_patience_s: ContextVar[float] = ContextVar("patience_s", default=PATIENCE_S)
_retries: Counter[str] = Counter()
_counting = threading.Lock()

_Answer = TypeVar("_Answer")


class RefusedError(UserError, PermissionError):
    """A store that says no, and will say so again. An OSError too: who needs one file of many may go on."""

    def __str__(self) -> str:
        return f"'{self.filename}': {self.strerror}"


def ask(url: str, do: Callable[[Any, str], _Answer]) -> _Answer:
    """What `do(filesystem, path)` gives, asked again while the store's answer may still change.

    Raises:
        UserError: there is no such kind of URL.
        RefusedError: no permission, or no credentials.
        FileNotFoundError: no such file, or bucket.
        OSError: anything else, for longer than patience lasts; names the URL.
    """
    until = time.monotonic() + _patience_s.get()
    pause = _PAUSE_S
    while True:
        try:
            return do(*_filesystem(url))
        except (UserError, MemoryError):
            raise
        except ImportError as error:
            raise UserError(f"'{shown(url)}': {_first_line(error)}") from None
        except Exception as error:
            problem = _problem(url, error)
            if isinstance(problem, (FileNotFoundError, RefusedError)):
                raise problem from None
            if time.monotonic() + pause > until:
                raise problem from error
            with _counting:
                _retries[_cause(error)] += 1
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, _LONGEST_PAUSE_S)


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """How long this thread asks again within the block: a user who waits wants to know soon."""
    before = _patience_s.set(seconds)
    try:
        yield
    finally:
        _patience_s.reset(before)


def take_retries() -> dict[str, int]:
    """How often this process asked again since it was last taken, by what the store had answered."""
    with _counting:
        taken = dict(_retries)
        _retries.clear()
    return taken


def shown(text: str) -> str:
    """A URL, or a text that may hold some, as messages have it: without passwords, keys and signatures."""
    return re.sub(r"(?<=://)[^/@\s'\"]*@|(?<=\w)\?[^\s'\"]*=[^\s'\"]*", "", text) if "://" in text else text


def files_below(url: str, start: str = "") -> Iterator[str]:
    """Paths below a folder of a store, relative to it, in the order of `str`; on S3 a page at a time.

    `start`: what the wanted ones begin with, for stores that can leave out the others.
    """
    if url.startswith(_S3):
        yield from _pages_of_s3(url, start)
    else:
        yield from _walk(url.rstrip("/"), "")


class RemoteFile(io.RawIOBase):
    """A file of a store to read from anywhere in it; each read is a request of its own."""

    def __init__(self, url: str) -> None:
        self._url, self._position = url, 0
        self._size: int = ask(url, lambda filesystem, path: filesystem.info(path)["size"])

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As for any file."""
        self._position = offset + {0: 0, 1: self._position, 2: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """As for any file."""
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        data = read_part(self._url, self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """What is left, in one request; the base class would ask for 8 KiB at a time."""
        if self._position >= self._size:
            return b""
        data = read_part(self._url, self._position, self._size)
        self._position += len(data)
        return data


def open_remote(url: str, ahead: int) -> IO[bytes]:
    """A file that fetches `ahead` bytes at once, or more where more is asked for."""
    return io.BufferedReader(RemoteFile(url), ahead)


def read_all(url: str) -> bytes:
    """All bytes of a file."""
    # In parts, as s3fs reads large files, it never gives back the connection of one that fails.
    whole = {"max_concurrency": 1} if url.startswith(_S3) else {}
    return ask(url, lambda filesystem, path: filesystem.cat_file(path, **whole))


def read_part(url: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file; fewer where it ends before."""

    def read(filesystem: Any, path: str) -> bytes:
        try:
            return filesystem.cat_file(path, start=start, end=end)
        except OSError as error:
            if _cause(error) in ("InvalidRange", "416"):  # S3 has no words for the part of an empty file
                return b""
            raise

    return ask(url, read)


def _filesystem(url: str) -> tuple[Any, str]:
    options: dict[str, Any] = {}
    if url.startswith(_S3):
        ours = {
            "read_timeout": ANSWER_S,
            "connect_timeout": ANSWER_S / 2,
            "retries": {"total_max_attempts": 1},
        }
        users = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options = {"config_kwargs": {**ours, **users}, "use_listings_cache": False}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    if options:
        filesystem.retries = 1
    return filesystem, path


def _problem(url: str, error: Exception) -> OSError:
    said = _first_line(error)
    # The upload of a large file whose last answer was lost is not there any more, because the file is.
    if isinstance(error, FileNotFoundError) and _cause(error) != "NoSuchUpload":
        return FileNotFoundError(errno.ENOENT, said, shown(url))
    refused = getattr(error, "status", None) in (400, 401, 403, 410)  # of a server that speaks http
    if refused or isinstance(error, (PermissionError, ValueError)) or "Credential" in type(error).__name__:
        return RefusedError(errno.EACCES, said, shown(url))
    return OSError(getattr(error, "errno", None) or errno.EIO, said, shown(url))


def _cause(error: BaseException) -> str:
    """What a store answered: its own code where it has one, else the error's name."""
    link: BaseException | None = error
    while link is not None:
        response = getattr(link, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code") or "error")
        link = link.__cause__
    return type(error).__name__


def _first_line(error: Exception) -> str:
    return shown(next(iter(str(error).splitlines()), type(error).__name__))


def _pages_of_s3(url: str, start: str) -> Iterator[str]:
    """`list_objects_v2` by itself: s3fs would hold the whole listing before it gives the first name."""
    _, path = _filesystem(url)
    bucket, _, prefix = path.partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    further: dict[str, str] = {}
    while True:

        def page(filesystem: Any, _: str, further: dict[str, str] = further) -> dict[str, Any]:
            return filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix + start, **further)

        answer = ask(url, page)
        for item in answer.get("Contents", []):
            if not item["Key"].endswith("/"):
                yield item["Key"][len(prefix) :]
        if not answer.get("IsTruncated"):
            return
        further = {"ContinuationToken": answer["NextContinuationToken"]}


def _walk(folder: str, below: str) -> Iterator[str]:
    """A folder at a time, in the order that one sorted list of all paths would have."""

    def listed(filesystem: Any, path: str) -> list[tuple[str, bool]]:
        filesystem.invalidate_cache(path)
        items = filesystem.ls(path, detail=True)
        return [(item["name"].rstrip("/").rsplit("/", 1)[-1], item["type"] == "directory") for item in items]

    names = [name + "/" * is_folder for name, is_folder in ask(folder, listed)]
    for name in sorted(names):
        if name.endswith("/"):
            yield from _walk(f"{folder}/{name[:-1]}", below + name)
        else:
            yield below + name
