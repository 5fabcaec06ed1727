"""Where exported files go: whole or not at all, to any path or URL, over nothing that is there."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from annotator.errors import UserError
from annotator.storage.files import (
    FIRST_ANSWER_S,
    check_writable,
    is_local,
    join,
    local_path,
    names_in,
    read_range,
    read_whole,
    remove_file,
    whole_file,
    write_whole,
)
from annotator.storage.remote import ask, patience
from annotator.storage.room import naming

#: What a folder that is being made holds until it is whole.
UNFINISHED = "_export.json"

_LONGEST_NAME = 100


@contextmanager
def whole(url: str) -> Iterator[IO[bytes]]:
    """A seekable file to write to, which appears at `url` when all is written; an error leaves nothing."""
    if is_local(url):
        with whole_file(local_path(url)) as file:
            yield file
        return
    with tempfile.TemporaryDirectory(prefix="amvur-export-") as folder:
        path = Path(folder) / "whole"
        with naming(path), path.open("wb") as file:
            yield file
        ask(url, lambda filesystem, target: filesystem.put_file(str(path), target))


def check_new_file(out: str, suffix: str) -> None:
    """Whether a file of this name can be written.

    Raises:
        UserError: another suffix, something of that name is there, or the folder can't be written to.
    """
    if not out.endswith(suffix):
        raise UserError(f"'{out}': give a new file whose name ends in {suffix}")
    if _is_there(out):
        raise UserError(f"'{out}' exists: give a new file")
    check_writable(out.rpartition("/")[0] or ("/" if out.startswith("/") else "."))


def _is_there(out: str) -> bool:
    with patience(FIRST_ANSWER_S):
        if is_local(out):
            return local_path(out).exists()
        try:
            read_range(out, 0, 1)
        except FileNotFoundError:
            return bool(names_in(out))
        except OSError:  # a folder, in stores that have them
            return bool(names_in(out))
        return True


def check_new_folder(out: str, plan: dict[str, Any]) -> None:
    """Whether a folder is new, empty, or what the same command left unfinished.

    Raises:
        UserError: it holds something else, or is a file.
    """
    if is_local(out) and local_path(out).is_file():
        raise UserError(f"'{out}' is a file: give a new folder")
    with patience(FIRST_ANSWER_S):
        there = {name for name in names_in(out) if not name.startswith(".")}
        begun = read_whole(join(out, UNFINISHED)) if UNFINISHED in there else None
    if there and begun != _encoded(plan):
        raise UserError(f"'{out}' holds something: give a new folder")


@contextmanager
def new_folder(out: str, plan: dict[str, Any]) -> Iterator[None]:
    """Make it; until the block is done, the same command may write all of it again.

    A mistake that is found before anything was written leaves nothing.
    """
    is_new = is_local(out) and not local_path(out).exists()
    check_writable(out)
    write_whole(join(out, UNFINISHED), _encoded(plan))
    try:
        yield
    except UserError:
        if names_in(out) == {UNFINISHED}:
            remove_file(join(out, UNFINISHED))
            if is_new:
                local_path(out).rmdir()
        raise
    remove_file(join(out, UNFINISHED))


def _encoded(plan: dict[str, Any]) -> bytes:
    return json.dumps(plan, sort_keys=True).encode()


class HandNames:
    """File names for hands that no id can lead out of their folder with, each its own."""

    def __init__(self) -> None:
        self._again: Counter[str] = Counter()

    def of(self, image_id: str, image_uri: str, hand_index: int, duplicate: bool) -> str:
        """Such as `left_001.jpg-5f0a61c2-0`: letters, digits, dot, dash, underscore.

        The middle is a hash of id and uri, so that ids differ that look the same without their other characters, or
        on a disk that takes a for A.
        """
        digest = hashlib.sha256(f"{image_id}\0{image_uri}".encode()).hexdigest()[:8]
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", image_id).strip("._-")[-_LONGEST_NAME:].lstrip("._-")
        name = f"{plain or 'hand'}-{digest}-{hand_index}"
        if not duplicate:
            return name
        self._again[name] += 1
        return f"{name}-again{self._again[name]}"
