"""Where photos come from: folders, globs, lists, tars, Parquet and videos, on disk or behind any URL."""

from __future__ import annotations

from annotator.errors import UserError
from annotator.io.sources.boxes import WithBoxes
from annotator.io.sources.folder import FolderSource, holds_photos
from annotator.io.sources.listed import LIST_SUFFIXES, ListSource
from annotator.io.sources.source import Source
from annotator.io.storage import is_local, local_path

__all__ = ["FolderSource", "ListSource", "Source", "WithBoxes", "open_source"]


def open_source(place: str, leave_out: str = "", every: int = 1, boxes: str | None = None) -> Source:
    """The source behind what a user typed.

    Args:
        place: path or URL of a folder, a glob, a list (`.txt`, `.csv`, `.tsv`, `.jsonl`, `.parquet`), a tar, a Parquet
            file with photos inside, a video or a photo.
        leave_out: a folder below it that is none of the source's: labels may lie among photos.
        every: of a video, each so-many-th frame.
        boxes: a list with boxes, or labels that `amvur detect` wrote: the hands in these photos.

    Raises:
        UserError: there is nothing of the kind.
    """
    if every < 1:
        raise UserError(f"every {every} is no step between frames: give 1 or more")
    photos: Source = ListSource(place) if _is_list(place) else FolderSource(place, leave_out, every)
    return photos if boxes is None else WithBoxes(photos, boxes)


def _is_list(place: str) -> bool:
    if not place.lower().endswith(LIST_SUFFIXES) or (is_local(place) and not local_path(place).is_file()):
        return False
    return not place.lower().endswith(".parquet") or not holds_photos(place)
