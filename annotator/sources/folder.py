"""A folder or glob, on disk or in a store: every photo below it, and the photos in tars, Parquet files and videos."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec.utils
import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import UserError, printable
from annotator.photos.formats import START_BYTES, starts_like_a_photo
from annotator.sources.entry import Entry, Fault, path_as_utf8
from annotator.sources.faults import open_existing
from annotator.sources.parquet import image_columns, list_parquet
from annotator.sources.source import Source
from annotator.sources.suffixes import ARCHIVE_SUFFIXES, PHOTO_SUFFIXES, VIDEO_SUFFIXES
from annotator.sources.tar import list_tar
from annotator.sources.video.end import is_transport_stream
from annotator.sources.video.source import list_video
from annotator.storage.files import is_local, join, local_path, open_file
from annotator.storage.remote import files_below, without_secrets

_WILD = re.compile(r"[*?\[]")


class FolderSource(Source):
    """All photos below a folder, matched by a glob, or in one file, in the order of their paths."""

    def __init__(self, place: str, leave_out: str = "", every: int = 1) -> None:
        """Check that the source exists.

        Args:
            place: path or URL of a folder or file, or one with `*`, `**`, `?` or `[...]`.
            leave_out: a folder below `place` to skip: label sets may lie among photos.
            every: use every Nth frame of a video.

        Raises:
            UserError: the source does not exist, or can't be read.
        """
        super().__init__()
        self._every = every
        folder, pattern = _split_glob(place)
        self._matches = _glob(pattern) if pattern else None
        self._parts = [None if part == "**" else _glob(part) for part in pattern.split("/") if pattern]
        self._start = _WILD.split(pattern, maxsplit=1)[0]  # common prefix of all matches
        self._only: str | None = None  # the file, if the source is a single file
        self._leave_out = ""
        if is_local(folder):
            path = _existing(str(local_path(folder)))
            if not path.is_dir():
                if pattern:
                    raise UserError(
                        f"'{printable(folder)}' is a file, not a folder: a glob can't match below it"
                    )
                # Keep the file's own name: it may be a link to a file without a suffix.
                path, self._only = path.parent, path.name
            self._folder = str(path.resolve())
            if leave_out and is_local(leave_out):
                self._leave_out = str(local_path(leave_out).resolve())
        else:
            if not pattern and folder.rsplit("/", 1)[-1].lower().endswith(_FILES):
                _check_exists(folder)
                folder, self._only = folder.rsplit("/", 1)
            self._folder = folder.rstrip("/")
            if leave_out.startswith(self._folder + "/"):
                self._leave_out = leave_out.rstrip("/")[len(self._folder) + 1 :] + "/"
        if self._only and self._only.lower().endswith(ARCHIVE_SUFFIXES):
            raise UserError(f"'{printable(without_secrets(place))}': an archive {_UNPACK}")
        self.root = self._folder
        self.place = without_secrets(
            path_as_utf8(join(self._folder, pattern or self._only or "").rstrip("/"))
        )

    def key(self, entry: Entry) -> tuple[str, float]:
        """Sort files by path, and entries within a file by their position.

        A fault of a whole file comes last: the file may be cut short in one pass, and complete or missing in the next.
        """
        atomic_local_file = entry.fault is not None and holds_many(entry)
        return entry.file_id, math.inf if atomic_local_file else entry.order

    def __iter__(self) -> Iterator[Entry]:
        self.reset_skipped()
        for name in self._names():
            if self._matches is None or self._matches(path_as_utf8(name)):
                yield from self._entries(name)

    def _names(self) -> Iterator[str]:
        if self._only is not None:
            yield self._only
        elif is_local(self._folder):
            yield from self._local_names()
        else:
            try:
                yield from filter(self._is_included, files_below(self._folder, self._start))
            except FileNotFoundError as error:
                raise UserError(
                    f"'{printable(without_secrets(self._folder))}' does not exist: {error.strerror}"
                ) from None

    def _is_included(self, name: str) -> bool:
        hidden = name.startswith(".") or "/." in name
        return not hidden and not (self._leave_out and name.startswith(self._leave_out))

    def _local_names(self) -> Iterator[str]:
        """Yield the files below a folder on disk, with a stack instead of recursion: folders may be nested deeply."""
        open_folders = [self._listed("")]
        while open_folders:
            if not open_folders[-1]:
                open_folders.pop()
                continue
            name = open_folders[-1].pop()
            if name.endswith("/"):
                open_folders.append(self._listed(name))
            else:
                yield name

    def _listed(self, prefix: str) -> list[str]:
        """Return the names in a folder in reverse order; as text, which is smaller than directory entries."""
        names = []
        try:
            with os.scandir(join(self._folder, prefix[:-1]) if prefix else self._folder) as items:
                for item in items:
                    if item.name.startswith("."):
                        continue
                    if not item.is_dir(follow_symlinks=False):
                        names.append(prefix + item.name)
                    elif item.path != self._leave_out and self._may_hold(prefix + item.name):
                        names.append(f"{prefix}{item.name}/")
        except OSError as error:
            self.skip(f"{path_as_utf8(prefix)} ({error.strerror})")
            return []
        names.sort(key=path_as_utf8, reverse=True)
        return names

    def _may_hold(self, folder: str) -> bool:
        """Return whether the pattern, if any, can match anything below a folder."""
        names = path_as_utf8(folder).split("/")
        for name, part in zip(names, self._parts, strict=False):
            if part is None:
                return True
            if not part(name):
                return False
        return not self._parts or len(names) < len(self._parts)

    def _entries(self, name: str) -> Iterator[Entry]:
        path, file_id = join(self._folder, name), path_as_utf8(name)
        suffix = Path(name).suffix.lower()
        other = _other_kind(path) if is_local(path) else ""
        if other and (suffix not in PHOTO_SUFFIXES or other == _LINK):
            if path != self._leave_out:
                self.skip(f"{file_id} ({other})")
        elif suffix in PHOTO_SUFFIXES:
            yield Entry(path, file_id)
        elif suffix == ".tar":
            yield from list_tar(path, file_id, self.skip)
        elif suffix == ".parquet" and (self._only or holds_photos(path)):
            yield from list_parquet(path, file_id)
        elif name.lower().endswith(ARCHIVE_SUFFIXES):
            yield Entry(path, file_id, fault=Fault("unsupported", f"an archive {_UNPACK}"))
        elif suffix == ".ts" and not self._only and _is_code(path):
            self.skip(file_id)
        elif suffix in VIDEO_SUFFIXES and not self._only and find_spec("av") is None:
            self.skip(f"{file_id} (a video: pip install 'amvur-annotator[video]')")
        elif suffix in VIDEO_SUFFIXES:
            yield from list_video(path, file_id, self._every)
        elif is_local(path) and _starts_like_a_photo(path):
            yield Entry(path, file_id)
        else:
            self.skip(file_id)


#: A URL with one of these suffixes is a file, not a folder.
_FILES = (*PHOTO_SUFFIXES, *VIDEO_SUFFIXES, *ARCHIVE_SUFFIXES, ".tar", ".parquet")

_UNPACK = "of this kind is not supported: unpack it, or pack its photos into a plain .tar"


_LINK = "a link to a folder"


def holds_many(entry: Entry) -> bool:
    """Return whether the entry stands for a whole file of many photos, not for one of them."""
    suffix = Path(entry.path).suffix.lower()
    return not entry.at and entry.id == entry.file_id and suffix in (".tar", ".parquet", *VIDEO_SUFFIXES)


def _split_glob(place: str) -> tuple[str, str]:
    """Return the folder before the first wildcard, and the pattern below it; an existing path is not a pattern."""
    if not _WILD.search(place) or (is_local(place) and local_path(place).exists()):
        return place, ""
    parts = place.split("/")
    first = next(number for number, part in enumerate(parts) if _WILD.search(part))
    folder = "/".join(parts[:first])
    pattern = "/".join(parts[first:]) + "**" * place.endswith("/")
    return folder or ("/" if place.startswith("/") else "."), pattern


def _glob(pattern: str) -> Callable[[str], Any]:
    try:
        return re.compile(fsspec.utils.glob_translate(pattern)).match
    except ValueError:
        raise UserError(
            f"'{printable(pattern)}' is not a valid glob: '**' must stand alone between slashes, as in '**/*.jpg'"
        ) from None


def _existing(folder: str) -> Path:
    path = Path(folder)
    try:
        exists = path.exists()
    except OSError as error:
        raise UserError(f"'{printable(folder)}' can't be read: {error.strerror}") from None
    if not exists:
        raise UserError(f"'{printable(folder)}' does not exist: give a folder of photos, a list or a glob")
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise UserError(f"'{printable(folder)}' can't be read: check its permissions")
    return path


def _check_exists(url: str) -> None:
    """Raise UserError if a store has no such file."""
    try:
        open_file(url).close()
    except FileNotFoundError:
        raise UserError(
            f"'{printable(without_secrets(url))}' does not exist: give a folder of photos, a list or a glob"
        ) from None


def _other_kind(path: str) -> str:
    """Describe a path that is not a regular file; empty for files, also missing or unreadable ones, which get rows."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a path may hold surrogates
    except (OSError, ValueError):
        return ""
    return _LINK if stat.S_ISDIR(mode) else "" if stat.S_ISREG(mode) else "not a regular file"


def holds_photos(path: str) -> bool:
    """Return whether a Parquet file holds photos; also true for a damaged file, so that it gets a row."""
    try:
        with open_file(path) as file:
            return bool(image_columns(pq.read_schema(file)))
    except (pa.ArrowException, OSError):
        return True


def _starts_like_a_photo(path: str) -> bool:
    """Return whether a file with an unknown suffix is a photo by its first bytes."""
    try:
        if not os.path.isfile(path):  # noqa: PTH113
            return False
        with open(path, "rb") as file:  # noqa: PTH123 - a path may hold surrogates; open is the plainest
            return starts_like_a_photo(file.read(START_BYTES))
    except OSError:
        return False


def _is_code(path: str) -> bool:
    """Return whether a `.ts` file is TypeScript, not a transport stream; false if unreadable, so that it gets a row."""
    try:
        with open_existing(path) as file:
            start = file.read(256)
    except OSError:
        return False
    return bool(start) and not is_transport_stream(start)
