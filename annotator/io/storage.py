"""Writing whole files: a reader sees all of a file or none of it, on disk and on any fsspec URL."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec

from annotator.errors import UserError


class RefusedError(UserError, PermissionError):
    """A store that says no, and will say so again. An OSError too: who needs one file of many may go on."""

    def __str__(self) -> str:
        return f"'{self.filename}': {self.strerror}"


def is_local(url: str) -> bool:
    """Whether a path or URL is on this machine's disks."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The path behind a local path or `file://` URL."""
    return Path(url.removeprefix("file://"))


def join(folder: str, *parts: str) -> str:
    """A path or URL below a folder."""
    return "/".join([folder.rstrip("/"), *parts])


def write_whole(url: str, data: bytes, scratch: str | None = None) -> None:
    """Write a file in one step: on disk a rename, elsewhere one put of bytes that are complete already.

    Args:
        url: where to.
        data: all of it.
        scratch: on disk, the folder for the unfinished file, on the same file system; beside `url` if none.
    """
    if not is_local(url):
        with _remote(url) as (filesystem, path):
            filesystem.pipe_file(path, data)
        return
    with whole_file(local_path(url), local_path(scratch) if scratch else None) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(target: Path, scratch: Path | None = None) -> Iterator[IO[bytes]]:
    """A file on disk to write to, which appears under its name when all is written; an error leaves nothing."""
    folder = scratch or target.parent
    folder.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=folder, prefix=f".{target.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files only their owner can read; labels are for whoever the folder is for.
        umask = os.umask(0)
        os.umask(umask)
        Path(unfinished).chmod(0o666 & ~umask)
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(unfinished).replace(target)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def read_range(url: str, start: int, length: int) -> bytes:
    """`length` bytes of a file from `start`."""
    if is_local(url):
        with local_path(url).open("rb") as file:
            file.seek(start)
            return file.read(length)
    with _remote(url) as (filesystem, path):
        return filesystem.cat_file(path, start=start, end=start + length)


def open_file(url: str) -> IO[bytes]:
    """A file to read from."""
    if is_local(url):
        return local_path(url).open("rb")
    with _remote(url) as (filesystem, path):
        return filesystem.open(path, "rb")


@contextlib.contextmanager
def _remote(url: str) -> Iterator[tuple[Any, str]]:
    """The file system and path behind a URL. What its library raises, whatever that is, becomes an OSError.

    Raises:
        UserError: there is no such kind of URL.
        RefusedError: no permission, or no credentials.
        OSError: anything else; names the URL.
    """
    try:
        try:
            yield fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise UserError(f"'{url}': {_first_line(error)}") from None
    except UserError:
        raise
    except Exception as error:
        said = _first_line(error)
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, said, url) from None
        if isinstance(error, (PermissionError, ValueError)) or "Credential" in type(error).__name__:
            raise RefusedError(errno.EACCES, said, url) from None
        raise OSError(getattr(error, "errno", None) or errno.EIO, said, url) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def read_whole(url: str) -> bytes | None:
    """A file's bytes, None where there is no such file."""
    try:
        if is_local(url):
            return local_path(url).read_bytes()
        with _remote(url) as (filesystem, path):
            return filesystem.cat_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def names_in(folder: str) -> set[str]:
    """Names of the entries of a folder; none where it does not exist."""
    if is_local(folder):
        here = local_path(folder)
        return {entry.name for entry in os.scandir(here)} if here.is_dir() else set()
    with contextlib.suppress(FileNotFoundError), _remote(folder) as (filesystem, path):
        try:
            return {name.rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(path, detail=False)}
        finally:
            filesystem.invalidate_cache(path)  # others write here too
    return set()


def remove_file(url: str) -> None:
    """Remove a file, if it is there."""
    if is_local(url):
        local_path(url).unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError), _remote(url) as (filesystem, path):
        filesystem.rm_file(path)


def remove_folder(folder: str) -> None:
    """Remove a folder of ours and all in it, if it is there."""
    if is_local(folder):
        shutil.rmtree(local_path(folder), ignore_errors=True)


def check_writable(folder: str) -> None:
    """Make a folder and try it.

    Raises:
        UserError: it can't be made, is a file, or can't be written to.
    """
    probe = join(folder, ".amvur-probe")
    try:
        if is_local(folder):
            local_path(folder).mkdir(parents=True, exist_ok=True)
        write_whole(probe, b"")
        if is_local(folder):
            local_path(probe).unlink()
        else:
            remove_file(probe)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"can't write to '{folder}': {reason}; give a folder that can be written to"
        ) from None
