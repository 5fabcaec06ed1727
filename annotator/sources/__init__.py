"""Where photos come from: folders, globs, lists, tars, Parquet and videos, on disk or behind any URL."""

from __future__ import annotations

from annotator.errors import UserError
from annotator.sources.boxes import WithBoxes
from annotator.sources.folder import FolderSource, holds_photos
from annotator.sources.lists.listed import LIST_SUFFIXES, ListSource
from annotator.sources.source import Source
from annotator.storage.files import is_local, local_path

__all__ = ["FolderSource", "ListSource", "Source", "WithBoxes", "open_source"]


def open_source(
    place: str,
    leave_out: str = "",
    every: int = 1,
    boxes: str | None = None,
    boxes_normalised: bool = False,
    by_hand: bool = True,
) -> Source:
    """The source behind what a user typed.

    Args:
        place: path or URL of a folder, a glob, a list (`LIST_SUFFIXES`), a tar, a Parquet file with photos inside, a
            video or a photo.
        leave_out: a folder below it that is none of the source's: labels may lie among photos.
        every: of a video, each so-many-th frame.
        boxes: a list with boxes, or labels that `amvur detect` wrote: the hands in these photos.
        boxes_normalised: the list's boxes are fractions of each photo's width and height.
        by_hand: whether rows of a list may be hands of one photo, or each row is a photo.

    Raises:
        UserError: there is nothing of the kind, or no list of boxes that `boxes_normalised` could be of.
    """
    if every < 1:
        raise UserError(f"every {every} is no step between frames: give 1 or more")
    is_list = _is_list(place)
    if boxes_normalised and not (boxes or place).lower().endswith(LIST_SUFFIXES):
        raise UserError("boxes_normalised is of boxes in a list: give photos as a list, or a list as boxes")
    photos: Source
    if is_list:
        photos = ListSource(place, boxes_normalised and boxes is None, by_hand and boxes is None)
    else:
        photos = FolderSource(place, leave_out, every)
    return photos if boxes is None else WithBoxes(photos, boxes, boxes_normalised)


def _is_list(place: str) -> bool:
    if not place.lower().endswith(LIST_SUFFIXES) or (is_local(place) and not local_path(place).is_file()):
        return False
    return not place.lower().endswith(".parquet") or not holds_photos(place)
