"""Write exported files to any path or URL: atomically, and never over existing ones."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from annotator.errors import UserError
from annotator.storage.files import (
    FIRST_ANSWER_S,
    check_writable,
    is_local,
    join,
    local_path,
    names_in,
    read_range,
    remove_file,
)
from annotator.storage.remote import retry_limit
from annotator.storage.unfinished import is_left_unfinished, mark_unfinished

#: Marks an unfinished folder; holds the plan of its command.
UNFINISHED = "_export.json"

_LONGEST_NAME = 100


def check_new_file(out: str, suffix: str) -> None:
    """Check that a new file with this name can be written.

    Raises:
        UserError: the suffix differs, the name exists, or the folder is not writable.
    """
    if not out.endswith(suffix):
        raise UserError(f"'{out}': give a new file whose name ends in {suffix}")
    if _exists(out):
        raise UserError(f"'{out}' exists: give a new file")
    check_writable(out.rpartition("/")[0] or ("/" if out.startswith("/") else "."))


def _exists(out: str) -> bool:
    with retry_limit(FIRST_ANSWER_S):
        if is_local(out):
            return local_path(out).exists()
        try:
            read_range(out, 0, 1)
        except FileNotFoundError:
            return bool(names_in(out))
        except OSError:  # a folder, in stores with folders
            return bool(names_in(out))
        return True


def check_new_folder(out: str, plan: dict[str, Any]) -> None:
    """Check that a folder is new, empty, or left unfinished by the same command.

    Raises:
        UserError: it has other contents, or is a file.
    """
    if is_local(out) and local_path(out).is_file():
        raise UserError(f"'{out}' is a file: give a new folder")
    with retry_limit(FIRST_ANSWER_S):
        is_left_unfinished(out, UNFINISHED, plan)  # refuses other contents


@contextmanager
def new_folder(out: str, plan: dict[str, Any]) -> Iterator[None]:
    """Create a folder and mark it unfinished during the block, so that the same command may repeat.

    A `UserError` before the first file removes the folder.
    """
    is_new = is_local(out) and not local_path(out).exists()
    mark_unfinished(out, UNFINISHED, plan)
    try:
        yield
    except UserError:
        if names_in(out) == {UNFINISHED}:
            remove_file(join(out, UNFINISHED))
            if is_new:
                local_path(out).rmdir()
        raise
    remove_file(join(out, UNFINISHED))


def _plain_name(text: str, identity: str) -> str:
    """Return letters, digits, dot, dash and underscore of a text, then a hash of the identity.

    The hash separates texts that differ only in removed characters, or only in case on a disk that ignores case.
    """
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[-_LONGEST_NAME:].lstrip("._-")
    return f"{plain or 'hand'}-{digest}"


def track_name(sequence: str, track_id: int) -> str:
    """Return a name such as `clip.mp4-5f0a61c2-track3`; a hash of the whole name distinguishes sequences."""
    return f"{_plain_name(sequence.rpartition('/')[2], sequence)}-track{track_id}"


class HandNames:
    """Unique file names of hands; no id leads out of the folder."""

    def __init__(self) -> None:
        self._repeats: Counter[str] = Counter()

    def of(self, image_id: str, image_uri: str, hand_index: int, duplicate: bool) -> str:
        """Return a name such as `left_001.jpg-5f0a61c2-0`; the middle is a hash of id and uri."""
        identity = f"{image_id}\0{image_uri}"
        name = f"{_plain_name(image_id, identity)}-{hand_index}"
        if not duplicate:
            return name
        self._repeats[name] += 1
        return f"{name}-again{self._repeats[name]}"
