"""Read many stored photos: neighbours in one tar, Parquet file or video are read in one pass.

`annotator.sources.read.stored_at` lists the whole file for each photo, which is quadratic for a tar with thousands. It
remains the fallback for photos that are not found here, and gives the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from annotator.photos.errors import PhotoError
from annotator.sources.read import CONTAINERS, REQUESTS_AT_ONCE, location_of, stored_at

Pixels = NDArray[np.uint8]
PhotoOrError = bytes | Pixels | PhotoError  # as stored
Address = tuple[str, int | None]  # a label's image_uri and frame_index
At = tuple[int, ...]  # a photo's position in its container


class Positions:
    """Locates photos of labels in their containers; caches the positions of all photos in the last one."""

    def __init__(self) -> None:
        self._listed: tuple[str, dict[str, At]] = ("", {})

    def of(self, addresses: Sequence[Address]) -> list[At | None]:
        """Return each photo's position in its container, or None: it is a file, or not found."""
        found: list[At | None] = []
        for address in addresses:
            kind, path, inside = location_of(*address)
            if kind == "file":
                found.append(None)
                continue
            if self._listed[0] != path:
                self._listed = path, _positions_in(kind, path)
            found.append(self._listed[1].get(inside))
        return found


def stored_photos(addresses: Sequence[Address], positions: Sequence[At | None]) -> Iterator[PhotoOrError]:
    """Yield the stored photo of each address, or the error."""
    located = zip(addresses, positions, strict=True)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for (kind, path), group in groupby(located, key=lambda one: location_of(*one[0])[:2]):
            together = list(group)
            if kind == "file":
                for start in range(0, len(together), REQUESTS_AT_ONCE):
                    yield from pool.map(
                        _photo_at, (address for address, _ in together[start : start + REQUESTS_AT_ONCE])
                    )
            else:
                yield from _of_container(kind, path, together)


def _of_container(
    kind: str, path: str, located: Sequence[tuple[Address, At | None]]
) -> Iterator[PhotoOrError]:
    read = iter(CONTAINERS[kind].stored(path, [at for _, at in located if at is not None]))
    for address, at in located:
        stored = None
        if at is not None:
            # The reader of a damaged file ends early; the remaining photos are read one by one.
            with suppress(PhotoError, OSError):
                stored = next(read, None)
        yield stored if isinstance(stored, (bytes, np.ndarray)) else _photo_at(address)


def _positions_in(kind: str, path: str) -> dict[str, At]:
    """Return each photo's position in a file by the part of its uri after #, or by frame number."""
    at: dict[str, At] = {}
    with suppress(PhotoError, OSError):
        for entry in CONTAINERS[kind].entries(path, path):
            if not entry.fault:
                at[str(entry.frame_index) if kind == "video" else entry.inside or ""] = entry.at
    return at


def _photo_at(address: Address) -> PhotoOrError:
    try:
        return stored_at(*address)
    except PhotoError as error:
        return error
