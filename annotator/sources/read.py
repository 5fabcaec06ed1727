"""Read the photos of entries from files, members of tars, rows of Parquet files and frames of videos."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.photos.decode import Photo, decode_photo, read_photo
from annotator.photos.errors import PhotoError, reading_error
from annotator.sources.entry import Entry, path_of
from annotator.sources.parquet import list_parquet, read_parquet, read_row
from annotator.sources.suffixes import VIDEO_SUFFIXES
from annotator.sources.tar import list_tar, read_tar
from annotator.sources.video.source import list_video, read_frames, read_video
from annotator.storage.files import is_local, local_path

#: Parallel requests to a store, which has high latency but high throughput.
REQUESTS_AT_ONCE = 16


class Container(NamedTuple):
    """Functions for one kind of file that holds photos; `stored` and `photos` take a path and positions in it."""

    entries: Callable[[str, str], Iterator[Entry]]  # of a path and its id
    stored: Callable[[str, Sequence[tuple[int, ...]]], Iterator[Any]]  # bytes, or pixels of frames
    photos: Callable[[str, Sequence[tuple[int, ...]]], Iterator[Any]]  # the same, with a frame's camera


CONTAINERS = {
    "tar": Container(list_tar, read_tar, read_tar),
    "parquet": Container(list_parquet, read_parquet, read_parquet),
    "video": Container(list_video, read_video, read_frames),
}


def photos_of(entries: Sequence[Entry], min_side_px: Callable[[Entry], int]) -> Iterator[Photo | Exception]:
    """Yield the photo of each entry in their order, or the exception instead: an error affects only its own photo.

    `min_side_px` gives the argument of `decode_photo` per entry. Consecutive entries in one file are read together,
    and a photo shared by consecutive entries is decoded once.
    """
    for (kind, path), group in groupby(entries, key=_container):
        runs = [
            list(run)
            for _, run in groupby(group, key=lambda entry: (entry.path, entry.at, min_side_px(entry)))
        ]
        if kind == "file":
            stored = _files([run[0].path for run in runs])
        else:
            stored = CONTAINERS[kind].photos(path, [run[0].at for run in runs])
        for run, data in zip(runs, _one_each(stored, len(runs)), strict=True):
            photo = _decoded(data, min_side_px(run[0]))
            yield from [photo] * len(run)


def photo_at(uri: str, frame_index: int | None = None) -> Photo:
    """Return the photo with a label's `image_uri` and `frame_index`.

    Raises:
        PhotoError: the photo does not exist any more, or can't be read.
    """
    photo = _decoded(stored_at(uri, frame_index), None)
    if isinstance(photo, Photo):
        return photo
    raise photo


def stored_at(uri: str, frame_index: int | None = None) -> bytes | NDArray[np.uint8]:
    """Return a photo's stored bytes, or the pixels of a video's frame.

    Raises:
        PhotoError: the photo does not exist any more, or can't be read.
    """
    kind, path, inside = location_of(uri, frame_index)
    photos: Iterator[Any]
    if kind == "video":
        frames = islice(list_video(path, path, 1), int(inside), int(inside) + 1)
        photos = read_video(path, [entry.at for entry in frames if not entry.fault])
    elif kind == "tar":
        members = list_tar(path, path)
        photos = read_tar(path, [entry.at for entry in members if entry.inside == inside and not entry.fault])
    elif kind == "parquet":
        photos = iter([read_row(path, int(inside))])
    else:
        return read_photo(path)
    stored = next(_one_each(photos, 1))
    if stored is None:
        raise PhotoError("empty", "this row has no photo")
    if isinstance(stored, Exception):
        raise stored
    return stored


def location_of(uri: str, frame_index: int | None = None) -> tuple[str, str, str]:
    """Locate a photo by its label's `image_uri` and `frame_index`.

    Names of files and members may contain `#` themselves: on disk, an existing file has priority. A frame may also be
    given as in its id, by its number after `#`.

    Returns:
        The kind (`file`, `tar`, `parquet` or `video`), the file's path, and the name or number inside the file.
    """
    if frame_index is not None:
        return "video", path_of(uri), str(frame_index)
    path = path_of(uri)
    if "#" in uri and not (is_local(path) and local_path(path).is_file()):
        for mark in re.finditer("#", uri):
            container, inside = path_of(uri[: mark.start()]), uri[mark.end() :]
            suffix = container[container.rfind(".") :].lower()
            kind = "video" if suffix in VIDEO_SUFFIXES else suffix[1:]
            fits = kind == "tar" or (kind in ("parquet", "video") and inside.isdecimal())
            if fits and (not is_local(container) or local_path(container).is_file()):
                return kind, container, inside
    return "file", path, ""


def _container(entry: Entry) -> tuple[str, str]:
    if not entry.at:
        return "file", ""
    suffix = entry.path[entry.path.rfind(".") :].lower()
    return "video" if suffix in VIDEO_SUFFIXES else suffix[1:], entry.path


def _files(paths: Sequence[str]) -> Iterator[bytes | Exception]:
    """Read files in order: files on disk one by one, files in stores ahead and in parallel."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        ahead: deque[Future[bytes | Exception]] = deque()
        requested = 0
        for number, path in enumerate(paths):
            if is_local(path):
                yield _read(path)
                continue
            while requested < len(paths) and requested <= number + REQUESTS_AT_ONCE:
                if not is_local(paths[requested]):
                    ahead.append(pool.submit(_read, paths[requested]))
                requested += 1
            yield ahead.popleft().result()


def _read(path: str) -> bytes | Exception:
    try:
        return read_photo(path)
    except Exception as error:
        return error


def _one_each(photos: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield exactly `count` values: those of an iterator, and after it stops or fails, the error."""
    yielded = 0
    reason: Exception = PhotoError("missing", "this photo does not exist in its file any more")
    try:
        for value in photos:
            yield value
            yielded += 1
    except (FileNotFoundError, NotADirectoryError):
        reason = PhotoError("missing", "no such file")
    except PermissionError:
        reason = PhotoError("no_permission", "no permission to read the file")
    except OSError as error:
        reason = reading_error(error)
    except Exception as error:
        reason = error
    for _ in range(yielded, count):
        yield reason


def _decoded(data: Any, min_side_px: int | None) -> Photo | Exception:
    try:
        if data is None:
            return PhotoError("empty", "this row has no photo")
        if isinstance(data, (Exception, Photo)):
            return data
        if isinstance(data, bytes):
            return decode_photo(data, min_side_px)
        return Photo(data, width=data.shape[1], height=data.shape[0])
    except Exception as error:
        return error
