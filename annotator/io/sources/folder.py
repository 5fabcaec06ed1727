"""A folder of photos, on disk or in a store, or a glob: every photo below it, and those in tars, Parquet and videos."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import fsspec.utils
import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import UserError
from annotator.io.entry import Entry, readable
from annotator.io.remote import files_below, shown
from annotator.io.sources.parquet import image_column, list_parquet
from annotator.io.sources.source import Source
from annotator.io.sources.suffixes import PHOTO_SUFFIXES, VIDEO_SUFFIXES
from annotator.io.sources.tar import list_tar
from annotator.io.sources.video import list_video
from annotator.io.storage import is_local, join, local_path, open_file

#: A file with any other name is taken for a photo if it starts like one: a photo may be wrongly named.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")

_WILD = re.compile(r"[*?\[]")


class FolderSource(Source):
    """All photos below a folder or behind a glob, or in one file, in the order of their paths."""

    def __init__(self, place: str, leave_out: str = "", every: int = 1) -> None:
        """Look whether it is there.

        Args:
            place: path or URL of a folder or file, or one with `*`, `**`, `?` or `[...]`.
            leave_out: a folder below it that is none of the source's: labels may lie among photos.
            every: of a video, each so-many-th frame.

        Raises:
            UserError: it is not there, or can't be read.
        """
        super().__init__()
        self._every = every
        folder, pattern = _split_glob(place)
        self._matches = re.compile(fsspec.utils.glob_translate(pattern)).match if pattern else None
        self._only: str | None = None  # the one file, where the source is one
        self._leave_out = ""
        if is_local(folder):
            path = _local_folder(str(local_path(folder)))
            if not path.is_dir():
                path, self._only = path.parent, path.name
            self._folder = str(path)
            self._leave_out = str(local_path(leave_out).resolve()) if is_local(leave_out) else ""
        else:
            if not pattern and folder.rsplit("/", 1)[-1].lower().endswith(_FILES):
                folder, self._only = folder.rsplit("/", 1)
            self._folder = folder.rstrip("/")
            if leave_out.startswith(self._folder + "/"):
                self._leave_out = leave_out.rstrip("/")[len(self._folder) + 1 :] + "/"
        self.place = readable(join(self._folder, pattern or self._only or "").rstrip("/"))

    def key(self, entry: Entry) -> tuple[str, int]:
        """Paths come in the order of `str`, what is in one file in its own."""
        return entry.file_id, entry.order

    def __iter__(self) -> Iterator[Entry]:
        self.forget_skipped()
        for name in self._names():
            if self._matches is None or self._matches(readable(name)):
                yield from self._entries(name)

    def _names(self) -> Iterator[str]:
        if self._only is not None:
            yield self._only
        elif is_local(self._folder):
            yield from self._below(self._folder, "")
        else:
            for name in files_below(self._folder):
                hidden = name.startswith(".") or "/." in name
                if not hidden and not (self._leave_out and name.startswith(self._leave_out)):
                    yield name

    def _below(self, folder: str, prefix: str) -> Iterator[str]:
        """Names, not directory entries, are held while a folder is listed."""
        try:
            with os.scandir(folder) as items:
                names = [item.name + "/" * self._descend(item, prefix) for item in items]
        except OSError as error:
            self.skip(f"{readable(prefix)} ({error.strerror})")
            return
        names.sort(key=readable)
        for name in names:
            if name.endswith("/"):
                yield from self._below(f"{folder}/{name[:-1]}", prefix + name)
            elif not name.startswith("."):
                yield prefix + name

    def _descend(self, item: os.DirEntry[str], prefix: str) -> bool:
        if not item.is_dir(follow_symlinks=False):
            return False
        return not item.name.startswith(".") and item.path != self._leave_out

    def _entries(self, name: str) -> Iterator[Entry]:
        path, file_id = join(self._folder, name), readable(name)
        suffix = Path(name).suffix.lower()
        if suffix in PHOTO_SUFFIXES:
            if is_local(path) and os.path.isdir(path):  # noqa: PTH112 - a path may hold surrogates
                self.skip(file_id)
            else:
                yield Entry(path, file_id)
        elif suffix == ".tar":
            yield from list_tar(path, file_id, self.skip)
        elif suffix == ".parquet" and (self._only or holds_photos(path)):
            yield from list_parquet(path, file_id)
        elif suffix in VIDEO_SUFFIXES and not self._only and find_spec("av") is None:
            self.skip(f"{file_id} (a video: pip install 'amvur-annotator[video]')")
        elif suffix in VIDEO_SUFFIXES:
            yield from list_video(path, file_id, self._every)
        elif is_local(path) and _starts_like_a_photo(path):
            yield Entry(path, file_id)
        elif is_local(path) and os.path.isdir(path):  # noqa: PTH112
            if not os.path.basename(path).startswith(".") and path != self._leave_out:  # noqa: PTH119
                self.skip(f"{file_id} (a link to a folder)")
        else:
            self.skip(file_id)


#: What a URL ends in that is a file rather than a folder.
_FILES = (*PHOTO_SUFFIXES, *VIDEO_SUFFIXES, ".tar", ".parquet")


def _split_glob(place: str) -> tuple[str, str]:
    """The folder before the first wildcard, and the pattern below it; a path that exists is no pattern."""
    if not _WILD.search(place) or (is_local(place) and local_path(place).exists()):
        return place, ""
    parts = place.split("/")
    first = next(number for number, part in enumerate(parts) if _WILD.search(part))
    folder = "/".join(parts[:first])
    return folder or ("/" if place.startswith("/") else "."), "/".join(parts[first:])


def _local_folder(folder: str) -> Path:
    path = Path(folder)
    try:
        there = path.exists()
    except OSError as error:
        raise UserError(f"'{folder}' can't be read: {error.strerror}") from None
    if not there:
        raise UserError(f"there is no '{shown(folder)}': give a folder of photos, a list or a glob")
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise UserError(f"'{folder}' can't be read: check its permissions")
    return path.resolve()


def holds_photos(path: str) -> bool:
    """Whether a Parquet file is a collection of photos; a damaged one shall have its row."""
    try:
        with open_file(path) as file:
            return image_column(pq.read_schema(file)) is not None
    except (pa.ArrowException, OSError):
        return True


def _starts_like_a_photo(path: str) -> bool:
    try:
        if not os.path.isfile(path):  # noqa: PTH113
            return False
        with open(path, "rb") as file:  # noqa: PTH123 - a path may hold surrogates; open is the plainest
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
