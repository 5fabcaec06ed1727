"""Sources of photos: folders, globs, lists, tars, Parquet files and videos, on disk or behind any URL."""

from __future__ import annotations

from annotator.errors import UserError
from annotator.sources.boxes import WithBoxes
from annotator.sources.folder import FolderSource, holds_photos
from annotator.sources.lists.listed import LIST_SUFFIXES, ListSource
from annotator.sources.source import Source
from annotator.storage.files import is_local, local_path

__all__ = ["FolderSource", "ListSource", "Source", "WithBoxes", "check_has_photos", "open_source"]


def open_source(
    place: str,
    leave_out: str = "",
    every: int = 1,
    boxes: str | None = None,
    boxes_normalised: bool = False,
    by_hand: bool = True,
) -> Source:
    """Open the source that a user named.

    Args:
        place: path or URL of a folder, a glob, a list (`LIST_SUFFIXES`), a tar, a Parquet file with photos inside, a
            video or a photo.
        leave_out: a folder below `place` to skip: label sets may lie among photos.
        every: use every Nth frame of a video.
        boxes: a list with boxes, or labels from `amvur detect`, with the hands in these photos.
        boxes_normalised: the list's boxes are fractions of each photo's width and height.
        by_hand: rows of a list may be hands of one photo; otherwise each row is a photo.

    Raises:
        UserError: the source does not exist or can't be read, or `boxes_normalised` is set without a list of boxes.
    """
    if every < 1:
        raise UserError(f"every {every} is not a step between frames: give 1 or more")
    is_list = _is_list(place)
    if boxes_normalised and not (boxes or place).lower().endswith(LIST_SUFFIXES):
        raise UserError("boxes_normalised applies to boxes in a list: give the photos or the boxes as a list")
    photos: Source
    if is_list:
        photos = ListSource(place, boxes_normalised and boxes is None, by_hand and boxes is None)
    else:
        photos = FolderSource(place, leave_out, every)
    return photos if boxes is None else WithBoxes(photos, boxes, boxes_normalised)


def check_has_photos(source: Source, name: str) -> None:
    """Check that a source has photos; `name` is the user's.

    Raises:
        UserError: it has none.
    """
    listed = source.photos if isinstance(source, WithBoxes) else source
    if next(iter(listed), None) is None:
        raise UserError(f"there are no photos in '{name}' ({listed.skipped_count} files of other kinds)")


def _is_list(place: str) -> bool:
    if not place.lower().endswith(LIST_SUFFIXES) or (is_local(place) and not local_path(place).is_file()):
        return False
    return not place.lower().endswith(".parquet") or not holds_photos(place)
