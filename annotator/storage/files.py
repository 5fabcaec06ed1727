"""Read and write files on disk or at any fsspec URL; writes are atomic: a reader sees a complete file or none."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from annotator.errors import UserError, first_line
from annotator.storage.disk_space import DiskFullError, name_in_errors, written
from annotator.storage.remote import (
    open_remote,
    read_all,
    read_part,
    retry_limit,
    with_retries,
    without_secrets,
)

#: Timeout of the first successful request to a store that a command names, in seconds.
FIRST_ANSWER_S = 10.0


def is_local(url: str) -> bool:
    """Return whether a path or URL is on this machine's disks."""
    return "://" not in url or url.startswith("file://")


def absolute(place: str) -> str:
    """Return an absolute path, or a URL without a slash at its end: valid in other processes."""
    return str(local_path(place).absolute()) if is_local(place) else place.rstrip("/")


def local_path(url: str) -> Path:
    """Return the path of a local path or `file://` URL.

    Percent signs in a URL are escapes, unless only the file with the literal name exists.
    """
    if not url.startswith("file://"):
        return Path(url)
    plain = url.removeprefix("file://").removeprefix("localhost")
    if "%" not in plain:
        return Path(plain)
    unquoted = os.fsdecode(unquote_to_bytes(os.fsencode(plain)))
    is_plain = not os.path.exists(unquoted) and os.path.exists(plain)  # noqa: PTH110 - a path may hold a zero byte
    return Path(plain if is_plain else unquoted)


def join(folder: str, *parts: str) -> str:
    """Return a path or URL below a folder."""
    return "/".join([folder.rstrip("/"), *parts])


def write_atomic(url: str, data: bytes, scratch: str | None = None) -> None:
    """Write a file atomically: on disk by a rename, in a store by a single put.

    Args:
        url: path or URL of the file.
        data: its bytes.
        scratch: on disk, the folder for the temporary file, on the same file system; default: the target's folder.
    """
    if not is_local(url):
        with_retries(url, lambda filesystem, path: filesystem.pipe_file(path, data))
        return
    with atomic_local_file(local_path(url), local_path(scratch) if scratch else None, len(data)) as file:
        file.write(data)


def write_in_place(path: Path, data: bytes) -> None:
    """Write a file on disk without the delay of an atomic write; remove it on error."""
    try:
        with name_in_errors(path, len(data)):
            path.write_bytes(data)
    except OSError:
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_local_file(
    target: Path, scratch: Path | None = None, size: int | None = None
) -> Iterator[IO[bytes]]:
    """Open a temporary file on disk for writing; rename it to `target` on success, delete it on error.

    `size` in bytes, if known, appears in the error of a full disk.
    """
    folder = scratch or target.parent
    with name_in_errors(target, size, folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=folder, prefix=f".{target.name}-")
    try:
        with written(open(handle, "wb"), target, size, Path(unfinished)) as file:  # noqa: PTH123 - a descriptor
            yield file
        # mkstemp gives access to the owner only; labels get the default permissions.
        umask = os.umask(0)
        os.umask(umask)
        Path(unfinished).chmod(0o666 & ~umask)
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(unfinished).replace(target)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_file(url: str) -> Iterator[IO[bytes]]:
    """Open a seekable file that appears at `url` when it is complete; an error leaves nothing."""
    if is_local(url):
        with atomic_local_file(local_path(url)) as file:
            yield file
        return
    with tempfile.TemporaryDirectory(prefix="amvur-") as folder:
        path = Path(folder) / "whole"
        with written(path.open("wb"), path) as file:
            yield file
        with_retries(url, lambda filesystem, target: filesystem.put_file(str(path), target))


def move_atomic(url: str, target: str) -> None:
    """Move a complete file within its disk or store; `target` appears at once."""
    if is_local(url):
        local_path(target).parent.mkdir(parents=True, exist_ok=True)
        local_path(url).replace(local_path(target))
        return
    inside = with_retries(target, lambda filesystem, path: path)
    with_retries(url, lambda filesystem, path: filesystem.cp_file(path, inside))
    remove_file(url)


def read_range(url: str, start: int, length: int) -> bytes:
    """Return up to `length` bytes of a file from `start`."""
    if is_local(url):
        with local_path(url).open("rb") as file:
            file.seek(start)
            return file.read(length)
    return read_part(url, start, start + length)


def open_file(url: str, ahead: int = 1 << 17) -> IO[bytes]:
    """Open a file for reading; from a store, fetch `ahead` bytes per request."""
    return local_path(url).open("rb") if is_local(url) else open_remote(url, ahead)


def read_if_exists(url: str) -> bytes | None:
    """Return a file's bytes, or None if it does not exist."""
    try:
        if is_local(url):
            return local_path(url).read_bytes()
        return read_all(url)
    except (FileNotFoundError, NotADirectoryError):
        return None


def names_in(folder: str) -> set[str]:
    """Return the names in a folder; empty if it does not exist."""
    if is_local(folder):
        path = local_path(folder)
        return {entry.name for entry in os.scandir(path)} if path.is_dir() else set()

    def listed(filesystem: Any, path: str) -> set[str]:
        filesystem.invalidate_cache(path)  # other processes write here too
        return {name.rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(path, detail=False)}

    try:
        return with_retries(folder, listed)
    except FileNotFoundError:
        return set()


def sizes_in(folder: str) -> dict[str, int]:
    """Return the size in bytes of each file of a folder by name; a store's come from its listing."""
    if is_local(folder):
        here = local_path(folder)
        files = list(os.scandir(here)) if here.is_dir() else []
        return {entry.name: entry.stat().st_size for entry in files if entry.is_file()}

    def listed(filesystem: Any, path: str) -> dict[str, int]:
        filesystem.invalidate_cache(path)
        items = filesystem.ls(path, detail=True)
        return {
            item["name"].rsplit("/", 1)[-1]: item["size"] for item in items if item["type"] != "directory"
        }

    try:
        return with_retries(folder, listed)
    except FileNotFoundError:
        return {}


def remove_file(url: str) -> None:
    """Remove a file, if it exists."""
    if is_local(url):
        local_path(url).unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        with_retries(url, lambda filesystem, path: filesystem.rm_file(path))


def remove_folder(folder: str) -> None:
    """Remove a folder with its content, if it exists; of a store, the files that lie in it."""
    if is_local(folder):
        shutil.rmtree(local_path(folder), ignore_errors=True)
        return
    for name in names_in(folder):
        remove_file(join(folder, name))


def check_writable(folder: str) -> None:
    """Create a folder and check that files can be written there.

    Raises:
        UserError: the folder can't be created or written to, or is a file.
    """
    probe = join(folder, ".amvur-probe")
    try:
        if is_local(folder):
            local_path(folder).mkdir(parents=True, exist_ok=True)
        with retry_limit(FIRST_ANSWER_S):
            write_atomic(probe, b"")
            remove_file(probe)
    except DiskFullError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"can't write to '{without_secrets(folder)}': {reason}; give a writable folder"
        ) from None
