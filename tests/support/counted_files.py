"""A file system that notes every read of every process: `counted://PATH`."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

#: Environment variable with the folder of the notes, inherited by child processes.
NOTES = "COUNTED_READS"


class CountedFileSystem(LocalFileSystem):
    """Local files; each read of a range adds a line to this process's file of notes."""

    protocol = "counted"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("counted://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        data = super().cat_file(path, start=start, end=end, **options)
        start = start or 0
        with (Path(os.environ[NOTES]) / str(os.getpid())).open("a") as notes:
            notes.write(json.dumps([Path(path).name, start, start + len(data)]) + "\n")
        return data


def count_reads(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make `counted://` known here and, as a package's entry point, to child processes."""
    info = folder / "counted-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counted\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        f"[fsspec.specs]\ncounted = {__name__}:{CountedFileSystem.__name__}\n"
    )
    patch.syspath_prepend(str(folder))
    fsspec.register_implementation("counted", CountedFileSystem, clobber=True)


def reads_of_processes(notes: Path) -> dict[int, list[tuple[str, int, int]]]:
    """Per process: file, first byte and end of each read."""
    reads = defaultdict(list)
    for file in notes.iterdir():
        for line in file.read_text().splitlines():
            name, start, end = json.loads(line)
            reads[int(file.name)].append((name, start, end))
    return reads
