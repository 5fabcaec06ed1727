"""Writing whole files: a reader sees all of a file or none of it, on disk and on any fsspec URL."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from annotator.errors import UserError
from annotator.storage.remote import ask, open_remote, patience, read_all, read_part, shown
from annotator.storage.room import NoRoomError, naming

#: How long a store that a command names may take to give a first good answer.
FIRST_ANSWER_S = 10.0


def is_local(url: str) -> bool:
    """Whether a path or URL is on this machine's disks."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The path behind a local path or `file://` URL. Percent signs of a URL are escapes, unless a file has them so."""
    if not url.startswith("file://"):
        return Path(url)
    plain = url.removeprefix("file://").removeprefix("localhost")
    if "%" not in plain:
        return Path(plain)
    meant = os.fsdecode(unquote_to_bytes(os.fsencode(plain)))
    is_plain = not os.path.exists(meant) and os.path.exists(plain)  # noqa: PTH110 - a path may hold a zero byte
    return Path(plain if is_plain else meant)


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
        ask(url, lambda filesystem, path: filesystem.pipe_file(path, data))
        return
    with whole_file(local_path(url), local_path(scratch) if scratch else None, len(data)) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(target: Path, scratch: Path | None = None, size: int | None = None) -> Iterator[IO[bytes]]:
    """A file on disk to write to, which appears under its name when all is written; an error leaves nothing.

    `size` in bytes, if it is settled, is for errors of a full disk.
    """
    folder = scratch or target.parent
    with naming(target, size, folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=folder, prefix=f".{target.name}-")
    try:
        with naming(target, size, Path(unfinished)), os.fdopen(handle, "wb") as file:
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
    return read_part(url, start, start + length)


def open_file(url: str, ahead: int = 1 << 17) -> IO[bytes]:
    """A file to read from; of a store, so many bytes at once."""
    return local_path(url).open("rb") if is_local(url) else open_remote(url, ahead)


def read_whole(url: str) -> bytes | None:
    """A file's bytes, None where there is no such file."""
    try:
        if is_local(url):
            return local_path(url).read_bytes()
        return read_all(url)
    except (FileNotFoundError, NotADirectoryError):
        return None


def names_in(folder: str) -> set[str]:
    """Names of the entries of a folder; none where it does not exist."""
    if is_local(folder):
        here = local_path(folder)
        return {entry.name for entry in os.scandir(here)} if here.is_dir() else set()

    def listed(filesystem: Any, path: str) -> set[str]:
        filesystem.invalidate_cache(path)  # others write here too
        return {name.rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(path, detail=False)}

    try:
        return ask(folder, listed)
    except FileNotFoundError:
        return set()


def remove_file(url: str) -> None:
    """Remove a file, if it is there."""
    if is_local(url):
        local_path(url).unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        ask(url, lambda filesystem, path: filesystem.rm_file(path))


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
        with patience(FIRST_ANSWER_S):
            write_whole(probe, b"")
            remove_file(probe)
    except NoRoomError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"can't write to '{shown(folder)}': {reason}; give a folder that can be written to"
        ) from None
