"""The photos of entries, wherever they lie: files, members of tars, rows of Parquet files, frames of videos."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.photos.decode import Photo, decode_photo, read_photo
from annotator.photos.errors import PhotoError, reading_error
from annotator.sources.entry import Entry, path_of
from annotator.sources.parquet import read_parquet, read_row
from annotator.sources.suffixes import VIDEO_SUFFIXES
from annotator.sources.tar import list_tar, read_tar
from annotator.sources.video.source import list_video, read_video
from annotator.storage.files import is_local, local_path

#: A store answers slowly and many at once: so many photos are asked for together.
REQUESTS_AT_ONCE = 16

_READERS: dict[str, Callable[[str, Sequence[tuple[int, ...]]], Iterator[Any]]] = {
    "tar": read_tar,
    "parquet": read_parquet,
    "video": read_video,
}


def photos_of(entries: Sequence[Entry], min_side_px: Callable[[Entry], int]) -> Iterator[Photo | Exception]:
    """The photo of each entry in their order, or why there is none: whatever happens costs one photo.

    `min_side_px`: of each, as for `decode_photo`. Entries that lie together in one file are read together, and a photo
    of several entries in a row is decoded once.
    """
    for (kind, path), group in groupby(entries, key=_place):
        runs = [
            list(run)
            for _, run in groupby(group, key=lambda entry: (entry.path, entry.at, min_side_px(entry)))
        ]
        if kind == "file":
            found = _files([run[0].path for run in runs])
        else:
            found = _READERS[kind](path, [run[0].at for run in runs])
        for run, data in zip(runs, _one_each(found, len(runs)), strict=True):
            photo = _decoded(data, min_side_px(run[0]))
            yield from [photo] * len(run)


def photo_at(uri: str, frame_index: int | None = None) -> Photo:
    """The photo that a label's `image_uri` and `frame_index` name.

    Raises:
        PhotoError: it is not there any more, or can't be read.
    """
    photo = _decoded(stored_at(uri, frame_index), None)
    if isinstance(photo, Photo):
        return photo
    raise photo


def stored_at(uri: str, frame_index: int | None = None) -> bytes | NDArray[np.uint8]:
    """What is stored there: a photo's bytes, or the pixels of a video's frame.

    Raises:
        PhotoError: it is not there any more, or can't be read.
    """
    kind, path, inside = place_of(uri, frame_index)
    found: Iterator[Any]
    if kind == "video":
        of_video = islice(list_video(path, path, 1), int(inside), int(inside) + 1)
        found = read_video(path, [entry.at for entry in of_video if not entry.fault])
    elif kind == "tar":
        members = list_tar(path, path)
        found = read_tar(path, [entry.at for entry in members if entry.inside == inside and not entry.fault])
    elif kind == "parquet":
        found = iter([read_row(path, int(inside))])
    else:
        return read_photo(path)
    stored = next(_one_each(found, 1))
    if stored is None:
        raise PhotoError("empty", "there is no photo in this row")
    if isinstance(stored, Exception):
        raise stored
    return stored


def place_of(uri: str, frame_index: int | None = None) -> tuple[str, str, str]:
    """What a label's `image_uri` and `frame_index` name: `file`, `tar`, `parquet` or `video`, its path, and what in it.

    Names of files and of members may hold `#`, too: on disk the file that is there counts. A frame may also be named
    as the id has it, by its number after `#`.
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


def _place(entry: Entry) -> tuple[str, str]:
    if not entry.at:
        return "file", ""
    suffix = entry.path[entry.path.rfind(".") :].lower()
    return "video" if suffix in VIDEO_SUFFIXES else suffix[1:], entry.path


def _files(paths: Sequence[str]) -> Iterator[bytes | Exception]:
    """Files on disk one by one, those of stores ahead of their turn."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        ahead: deque[Future[bytes | Exception]] = deque()
        asked = 0
        for turn, path in enumerate(paths):
            if is_local(path):
                yield _read(path)
                continue
            while asked < len(paths) and asked <= turn + REQUESTS_AT_ONCE:
                if not is_local(paths[asked]):
                    ahead.append(pool.submit(_read, paths[asked]))
                asked += 1
            yield ahead.popleft().result()


def _read(path: str) -> bytes | Exception:
    try:
        return read_photo(path)
    except Exception as error:
        return error


def _one_each(found: Iterator[Any], count: int) -> Iterator[Any]:
    """What an iterator gives, and from where it stops or fails, why."""
    given = 0
    reason: Exception = PhotoError("missing", "no such photo in this file any more")
    try:
        for value in found:
            yield value
            given += 1
    except (FileNotFoundError, NotADirectoryError):
        reason = PhotoError("missing", "no such file")
    except PermissionError:
        reason = PhotoError("no_permission", "no permission to read the file")
    except OSError as error:
        reason = reading_error(error)
    except Exception as error:
        reason = error
    for _ in range(given, count):
        yield reason


def _decoded(data: Any, min_side_px: int | None) -> Photo | Exception:
    try:
        if data is None:
            return PhotoError("empty", "there is no photo in this row")
        if isinstance(data, Exception):
            return data
        if isinstance(data, bytes):
            return decode_photo(data, min_side_px)
        return Photo(data, width=data.shape[1], height=data.shape[0])
    except Exception as error:
        return error
