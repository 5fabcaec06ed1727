"""The tracked sequences of a report: all their hands on a timeline, and the first frames for a player.

A player's frames are a small script beside the page, `clips/000.js`, loaded on demand. A page opened from disk can load
scripts but not fetch files.
"""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from annotator.errors import UserError
from annotator.labels.folder import column_names, label_files, read_columns
from annotator.photos.decode import Photo
from annotator.photos.errors import PhotoError
from annotator.sources.entry import path_of
from annotator.sources.read import photo_at, photos_of
from annotator.sources.sequences import SEQUENCE
from annotator.sources.video.source import list_video
from annotator.storage.files import FIRST_ANSWER_S, write_atomic
from annotator.storage.remote import retry_limit

#: Maximum sequences with a timeline, hands on one, and frames in its player.
MAX_CLIPS, MAX_HANDS, MAX_FRAMES = 4, 100_000, 240

#: Longer side of a player's pictures, pixels.
PICTURE_PX = 480

_COLUMNS = ("image_uri", "frame_index", "width", "height", "joints2d_px", "joints3d_std_mm", "is_right")


@dataclass
class SequenceSummary:
    """The tracked hands of one sequence, in the order of the set."""

    name: str
    frames: list[int] = field(default_factory=list)
    tracks: list[int] = field(default_factory=list)
    std_mm: list[float] = field(default_factory=list)  # mean over the joints
    filled: list[bool] = field(default_factory=list)
    locations: list[tuple[int, int]] = field(default_factory=list)  # number of the file, and row
    photos: dict[str, int] = field(default_factory=dict)  # their numbers, where the list has none

    def add(self, row: dict[str, Any], location: tuple[int, int]) -> None:
        """Add a tracked hand."""
        frame = row["frame_index"] if row["frame_index"] is not None else row.get("frame")
        self.frames.append(
            self.photos.setdefault(row["image_uri"], len(self.photos)) if frame is None else int(frame)
        )
        self.tracks.append(row["track_id"])
        self.std_mm.append(float("nan") if row["joint_std_mm"] is None else row["joint_std_mm"])
        self.filled.append(row["source"] == "interpolated")
        self.locations.append(location)


class Clips:
    """The first tracked sequences of a label set, in bounded memory."""

    def __init__(self, labels: str) -> None:
        """Read the names of the columns; a set that is not tracked has no clips."""
        self._labels, self._files = labels, sorted(label_files(labels))
        names = set(column_names(labels, self._files[0])) if self._files else set()
        self.columns = [n for n in ("track_id", "source", SEQUENCE, "frame") if n in names]
        self._is_tracked = {"track_id", "source"} <= names
        if not self._is_tracked:
            self.columns = []
        self._file = -1
        self._found: dict[str, SequenceSummary] = {}

    @property
    def found(self) -> list[SequenceSummary]:
        """The sequences, in the order of the set."""
        return list(self._found.values())

    def add(self, table: pa.Table) -> None:
        """Add the tracked hands of the next file."""
        self._file += 1
        if not self._is_tracked:
            return
        name = table["image_uri"]
        if SEQUENCE in self.columns:
            name = pc.coalesce(table[SEQUENCE].cast(pa.string()), name)
        name = pc.if_else(pc.is_valid(table["track_id"]), name, None)
        for new in pc.unique(name).drop_null().to_pylist():
            if len(self._found) < MAX_CLIPS:
                self._found.setdefault(new, SequenceSummary(new))
        (rows,) = np.nonzero(np.asarray(pc.is_in(name, pa.array(self._found, pa.string()))))
        columns = [*self.columns, "image_uri", "frame_index", "joint_std_mm"]
        names = name.take(rows).to_pylist()
        values = table.select(columns).take(rows).to_pylist()
        for clip, number, row in zip(map(self._found.get, names), rows, values, strict=True):
            if clip is not None and len(clip.frames) < MAX_HANDS:
                clip.add(row, (self._file, int(number)))

    def write(self, out: Path) -> None:
        """Write the players' frames to out/clips."""
        if self._found:
            (out / "clips").mkdir(exist_ok=True)
        for number, clip in enumerate(self.found):
            script = f"amvurClip({number}, {json.dumps(self._player(clip), allow_nan=False)});\n"
            write_atomic(str(out / "clips" / f"{number:03d}.js"), script.encode())

    def _player(self, clip: SequenceSummary) -> dict[str, Any]:
        """Return the first frames of a clip: pictures, and joints with stds over them."""
        frames = sorted(set(clip.frames))[:MAX_FRAMES]
        shown = [k for k, frame in enumerate(clip.frames) if frame <= frames[-1]]
        hands: dict[int, list[dict[str, Any]]] = {frame: [] for frame in frames}
        rows = self._rows([clip.locations[k] for k in shown])
        for k, row in zip(shown, rows, strict=True):
            std_mm = np.linalg.norm(np.array(row["joints3d_std_mm"], np.float64), axis=-1)
            hands[clip.frames[k]].append(
                {
                    "track": clip.tracks[k],
                    "right": row["is_right"],
                    "filled": clip.filled[k],
                    "joints": _rounded(np.array(row["joints2d_px"], np.float64).ravel()),
                    "std": _rounded(std_mm),
                }
            )
        of_frame = {clip.frames[k]: row for k, row in zip(shown, rows, strict=True)}
        size = max(((row["width"], row["height"]) for row in rows), default=(1, 1))
        return {
            "size": size,
            "frames": frames,
            "hands": [hands[frame] for frame in frames],
            "pictures": list(_pictures([of_frame[frame] for frame in frames])),
        }

    def _rows(self, locations: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Return the large columns of some rows; each file is read once."""
        by_file: dict[int, list[int]] = defaultdict(list)
        for position, (file, _) in enumerate(locations):
            by_file[file].append(position)
        rows: list[dict[str, Any]] = [{}] * len(locations)
        for file, positions in by_file.items():
            table = read_columns(self._labels, self._files[file], list(_COLUMNS))
            taken = table.take([locations[position][1] for position in positions]).to_pylist()
            for position, row in zip(positions, taken, strict=True):
                rows[position] = row
        return rows


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 1) for value in np.where(np.isfinite(values), values, 0)]


def _pictures(rows: Sequence[dict[str, Any]]) -> Iterator[str | None]:
    """Yield the picture of each frame as a data URI; None where the photo is missing."""
    with retry_limit(FIRST_ANSWER_S):  # an unreachable store must not delay the page
        try:
            photos = list(map(_encoded, _photos(rows)))
        except (UserError, OSError):  # from stores, and for videos without PyAV
            photos = []
    yield from photos or [None] * len(rows)


def _photos(rows: Sequence[dict[str, Any]]) -> Iterator[Photo | Exception]:
    uri, wanted = rows[0]["image_uri"], {row["frame_index"] for row in rows}
    if None in wanted:
        for row in rows:
            try:
                yield photo_at(row["image_uri"])
            except PhotoError as error:
                yield error
        return
    path = path_of(uri)
    entries = [entry for entry in list_video(path, path) if entry.frame_index in wanted and not entry.fault]
    if len(entries) == len(rows):
        yield from photos_of(entries, lambda _: PICTURE_PX)


def _encoded(photo: Photo | Exception) -> str | None:
    if isinstance(photo, Exception):
        return None
    picture = Image.fromarray(photo.pixels)
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=60)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
