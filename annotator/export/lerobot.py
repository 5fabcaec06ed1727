"""LeRobot data set, version 3: an episode per stretch of a sequence in which every frame has a tracked hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.export.exported import Exported
from annotator.export.exported_labels import LabelsToExport
from annotator.export.lerobot_files import DATA_PATH, EPISODES_PATH, Tables, info, write_json, write_tasks
from annotator.export.lerobot_hands import COLUMNS, FEATURES, OF_SIDES, Frames, frames_of
from annotator.export.lerobot_photos import CAMERA, CameraPhotos
from annotator.export.lerobot_stats import NumberStats
from annotator.export.tracks import columns_to_read, sequences
from annotator.track.frames import ASSUMED_RATE_HZ

#: The column of a list with the text of an episode's task, and the text without it.
TASK, NO_TASK = "task", "move the hands"

#: Maximum episode length, seconds: beyond it float32 timestamps are less exact than LeRobot's tolerance of 0.1 ms.
MAX_S = 600

#: Columns that LeRobot has in every data set.
_COUNTERS = {"timestamp": "float32"} | dict.fromkeys(
    ("frame_index", "episode_index", "index", "task_index"), "int64"
)


def columns(labels: LabelsToExport) -> list[str]:
    """Return the names of the columns to read.

    Raises:
        UserError: the labels hold no tracks or poses, or are of another hand model than the given one.
    """
    labels.hand_model()
    return columns_to_read(labels, "lerobot", *COLUMNS, "width", "height", TASK)


def write(labels: LabelsToExport, batches: Iterator[pa.Table], out: str, photos: str = "video") -> Exported:
    """Write the data set; `photos` is one of `lerobot_photos.FORMS`."""
    exported = Exported()
    model = labels.hand_model()
    data: DataSet | None = None
    try:
        for sequence in sequences(labels, batches, exported):
            frames = frames_of(model, sequence, exported)
            if not len(frames):
                continue
            data = data or DataSet(out, photos, frames, exported)
            task = str(sequence.rows[TASK][0].as_py()) if TASK in sequence.rows.column_names else NO_TASK
            data.add(frames, sequence.name, task)
    except BaseException as error:
        if data:
            data.abandon(error)
        raise
    if data and data.total:
        data.finish(labels.hand)
    return exported


def usual_rate_hz(time_s: Sequence[float] | NDArray[np.floating]) -> float:
    """Return the frame rate of most frames, a whole number where it is within 0.05 % of one."""
    if len(time_s) < 2:
        return ASSUMED_RATE_HZ
    rate = 1 / float(np.median(np.diff(time_s)))
    return float(round(rate)) if abs(rate - round(rate)) < 0.0005 * rate and round(rate) else round(rate, 3)


class DataSet:
    """A data set as it grows: frames of one size and one rate, those of the first sequence."""

    def __init__(self, out: str, photos: str, first: Frames, exported: Exported) -> None:
        self._out, self._exported = out, exported
        self.rate_hz = usual_rate_hz(first.time_s)
        self._photos = CameraPhotos(out, photos, self.rate_hz, first.sizes[0])
        self._data, self._episodes = Tables(out, DATA_PATH), Tables(out, EPISODES_PATH)
        self._tasks: dict[str, int] = {}
        self._stats = {key: NumberStats(len(names)) for key, (_, names) in FEATURES.items()}
        self._stats |= {key: NumberStats(1) for key in _COUNTERS}
        self.episodes = self.total = 0

    def add(self, frames: Frames, name: str, task: str) -> None:
        """Add the episodes of a sequence."""
        step_s = 1 / self.rate_hz
        steps = np.diff(frames.time_s)
        if len(steps) and abs(float(np.median(steps)) / step_s - 1) > 0.01:
            self._leave_out(
                frames, slice(None), f"hand in a video with a frame rate other than {self.rate_hz:g}"
            )
            return
        ends = np.flatnonzero(np.abs(steps / step_s - 1) > 0.5) + 1
        most = int(MAX_S * self.rate_hz)
        for part in np.split(np.arange(len(frames)), ends):
            for start in range(0, len(part), most):
                self._stretch(frames, part[start : start + most], name, task)

    def _stretch(self, frames: Frames, part: NDArray[np.int64], name: str, task: str) -> None:
        """Add frames that follow each other; one whose photo is missing ends an episode."""
        kept: list[int] = []
        for k, found in zip(part, self._photos.of([frames.addresses[k] for k in part]), strict=True):
            if self._photos.is_full:
                self._episode(frames, kept, name, task)
                kept = []
            reason = self._photos.add(frames.sizes[k], found)
            if reason is None:
                kept.append(int(k))
                continue
            self._leave_out(frames, [k], reason)
            self._episode(frames, kept, name, task)
            kept = []
        self._episode(frames, kept, name, task)

    def _leave_out(self, frames: Frames, part: Any, reason: str) -> None:
        hands = int(frames.valid[part].sum())
        self._exported.hands -= hands
        self._exported.left_out[reason] += hands

    def _episode(self, frames: Frames, kept: list[int], name: str, task: str) -> None:
        if not kept:
            return
        count = len(kept)
        counters: dict[str, NDArray[Any]] = {
            "timestamp": np.arange(count) / self.rate_hz,
            "frame_index": np.arange(count),
            "episode_index": np.full(count, self.episodes),
            "index": np.arange(self.total, self.total + count),
            "task_index": np.full(count, self._tasks.setdefault(task, len(self._tasks))),
        }
        values = {key: numbers[kept] for key, numbers in frames.values.items()}
        stats = self._add_stats(values, counters, frames.valid[kept])
        episode: dict[str, Any] = {"episode_index": self.episodes, "tasks": [task], "length": count}
        photos = self._photos.end_episode()
        location = self._data.add(self._table(values, counters, photos.files))
        episode |= {f"data/{key}": number for key, number in location.items()}
        episode |= {"dataset_from_index": self.total, "dataset_to_index": self.total + count}
        episode |= {f"videos/{CAMERA}/{key}": part for key, part in photos.location.items()}
        if photos.stats:
            stats[CAMERA] = photos.stats
        episode |= {f"meta/episodes/{key}": number for key, number in self._episodes.next_location().items()}
        episode |= {"source": name, "source_start_s": float(frames.time_s[kept[0]])}
        for key, summary in stats.items():
            episode |= {f"stats/{key}/{part}": numbers for part, numbers in summary.items()}
        self._episodes.add(pa.Table.from_pylist([episode]))
        self.episodes += 1
        self.total += count

    def _add_stats(
        self, values: dict[str, NDArray[Any]], counters: dict[str, NDArray[Any]], valid: NDArray[np.bool_]
    ) -> dict[str, Any]:
        stats = {}
        for key, numbers in (values | {key: each[:, None] for key, each in counters.items()}).items():
            known = np.ones(numbers.shape, bool)
            if key in OF_SIDES:
                known = np.repeat(valid, numbers.shape[1] // 2, axis=1)
            stats[key] = self._stats[key].episode(numbers, known)
        return stats

    def _table(
        self, values: dict[str, NDArray[Any]], counters: dict[str, NDArray[Any]], files: list[bytes]
    ) -> pa.Table:
        columns: dict[str, Any] = {}
        for key, numbers in values.items():
            flat = pa.array(numbers.reshape(-1))
            width = numbers.shape[1]
            columns[key] = flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)
        if files:
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            columns[CAMERA] = pa.array([{"bytes": data, "path": None} for data in files], kind)
        columns |= {key: pa.array(numbers.astype(_COUNTERS[key])) for key, numbers in counters.items()}
        return pa.table(columns)

    def abandon(self, error: BaseException) -> None:
        """Drop unfinished files."""
        for files in (self._data, self._episodes, self._photos):
            files.abandon(error)

    def finish(self, hand: str | None) -> None:
        """Complete all files and write those of `meta`."""
        for files in (self._data, self._episodes, self._photos):
            files.close()
        write_tasks(self._out, self._tasks)
        stats = {key: numbers.summary() for key, numbers in self._stats.items()}
        if of_photos := self._photos.stats():
            stats[CAMERA] = of_photos
        write_json(self._out, "stats.json", stats)
        facts = {
            "hand_model": hand,
            "total_episodes": self.episodes,
            "total_frames": self.total,
            "total_tasks": len(self._tasks),
            "splits": {"train": f"0:{self.episodes}"},
        }
        write_json(self._out, "info.json", info(self.rate_hz, facts, self._features()))
        self._exported.notes.append(
            f"{self.episodes} episodes, {self.total} frames at {self.rate_hz:g} per second"
        )

    def _features(self) -> dict[str, Any]:
        features: dict[str, Any] = {
            key: {"dtype": kind, "shape": [len(names)], "names": names if len(names) > 1 else None}
            for key, (kind, names) in FEATURES.items()
        }
        if about := self._photos.feature():
            features[CAMERA] = about
        return features | {
            key: {"dtype": kind, "shape": [1], "names": None} for key, kind in _COUNTERS.items()
        }
