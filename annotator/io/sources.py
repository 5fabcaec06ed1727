"""Where photos come from. A source is an ordered stream of entries; today a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from annotator.errors import UserError

#: A file with one of these endings is taken for a photo, whatever is inside.
PHOTO_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".avif",
        ".heic",
        ".heif",
        ".jp2",
    ]
)

#: A file with any other name is taken for a photo if it starts like one: a photo may be wrongly named.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")


@dataclass(frozen=True)
class Entry:
    """One photo to label."""

    path: str  # to open it by; may hold surrogates for bytes that are not UTF-8
    id: str  # stable: its path below the source folder

    @property
    def uri(self) -> str:
        """The path as text that every reader can hold."""
        return readable(self.path)


def readable(path: str) -> str:
    r"""A path as valid UTF-8; bytes that are not become `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass
class FolderSource:
    """All photos below a folder, in the order of their paths."""

    folder: str
    leave_out: str = ""  # a folder below it that is none of the source's: labels may lie among photos
    skipped: list[str] = field(default_factory=list)  # a few names of files that are no photos
    skipped_count: int = 0

    def __post_init__(self) -> None:
        path = Path(self.folder)
        try:
            there = path.exists()
        except OSError as error:
            raise UserError(f"'{self.folder}' can't be read: {error.strerror}") from None
        if not there:
            raise UserError(f"there is no '{self.folder}': give a folder of photos")
        if not path.is_dir():
            raise UserError(f"'{self.folder}' is not a folder: give a folder of photos")
        if not os.access(path, os.R_OK | os.X_OK):
            raise UserError(f"'{self.folder}' can't be read: check its permissions")
        self.folder = str(path.resolve())
        self.leave_out = str(Path(self.leave_out).resolve()) if self.leave_out else ""

    def __iter__(self) -> Iterator[Entry]:
        self.skipped, self.skipped_count = [], 0
        yield from self._below(self.folder, "")

    def _below(self, folder: str, prefix: str) -> Iterator[Entry]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self._skip(f"{prefix} ({error.strerror})")
            return
        for item in found:
            name = prefix + item.name
            if item.is_dir(follow_symlinks=False):
                if not item.name.startswith(".") and item.path != self.leave_out:
                    yield from self._below(item.path, name + "/")
            elif item.is_dir():
                self._skip(f"{name} (a link to a folder)")
            elif _is_photo(item):
                yield Entry(item.path, readable(name))
            else:
                self._skip(name)

    def _skip(self, name: str) -> None:
        self.skipped_count += 1
        if len(self.skipped) < 5:
            self.skipped.append(readable(name))


def _is_photo(item: os.DirEntry[str]) -> bool:
    if item.name.startswith("."):
        return False
    if Path(item.name).suffix.lower() in PHOTO_SUFFIXES:
        return True
    try:
        if not item.is_file():
            return False
        with open(item.path, "rb") as file:  # noqa: PTH123 - a path may hold surrogates; open is the plainest
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
