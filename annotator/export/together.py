"""What is stored of many photos: those that lie side by side in one tar, Parquet file or video are read in one go.

`photos.stored_at` finds one photo, for which it lists all of its file; for each of a tar's thousands that is the square
of them. Whatever is not found here is asked of it, which says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.photos.errors import PhotoError
from annotator.photos.read import REQUESTS_AT_ONCE, place_of, stored_at
from annotator.sources.parquet import list_parquet, read_parquet
from annotator.sources.tar import list_tar, read_tar
from annotator.sources.video.source import list_video, read_video

Pixels = NDArray[np.uint8]
Found = bytes | Pixels | PhotoError
Place = tuple[str, int | None]  # a label's image_uri and frame_index

_LIST: dict[str, Callable[[str, str], Iterator[Any]]] = {
    "tar": list_tar,
    "parquet": list_parquet,
    "video": list_video,
}
_READ: dict[str, Callable[[str, Sequence[tuple[int, ...]]], Iterator[Any]]] = {
    "tar": read_tar,
    "parquet": read_parquet,
    "video": read_video,
}


class StoredPhotos:
    """Reads photos of labels; knows of the last file with many where each of them lies."""

    def __init__(self) -> None:
        self._listed: tuple[str, dict[str, tuple[int, ...]]] = ("", {})

    def of(self, places: Sequence[Place]) -> Iterator[Found]:
        """What is stored at each place, or why nothing is."""
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            for (kind, path), group in groupby(places, key=lambda place: place_of(*place)[:2]):
                together = list(group)
                if kind == "file":
                    for start in range(0, len(together), REQUESTS_AT_ONCE):
                        yield from pool.map(_one, together[start : start + REQUESTS_AT_ONCE])
                else:
                    yield from self._of_container(kind, path, together)

    def _of_container(self, kind: str, path: str, places: Sequence[Place]) -> Iterator[Found]:
        if self._listed[0] != path:
            self._listed = path, _places_in(kind, path)
        at, inside = self._listed[1], [place_of(*place)[2] for place in places]
        there = iter(_READ[kind](path, [at[name] for name in inside if name in at]))
        for place, name in zip(places, inside, strict=True):
            found = None
            if name in at:
                # A damaged file's reader ends early: what is left is asked for one by one.
                with suppress(PhotoError, OSError):
                    found = next(there, None)
            yield found if isinstance(found, (bytes, np.ndarray)) else _one(place)


def _places_in(kind: str, path: str) -> dict[str, tuple[int, ...]]:
    """Where each photo of a file lies in it, by what follows # in its uri, or the number of a frame."""
    at: dict[str, tuple[int, ...]] = {}
    with suppress(PhotoError, OSError):
        for entry in _LIST[kind](path, path):
            if not entry.fault:
                at[str(entry.frame_index) if kind == "video" else entry.inside or ""] = entry.at
    return at


def _one(place: Place) -> Found:
    try:
        return stored_at(*place)
    except PhotoError as error:
        return error
