"""The files of a LeRobot data set, version 3: frames and episodes in Parquet, photos in MP4 files or in the frames."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.storage.files import atomic_file, join, write_atomic

#: LeRobot's defaults.
CHUNK_FILES = 1000
DATA_BYTES, VIDEO_BYTES = 100 << 20, 200 << 20
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

#: H.264 that every browser plays; every second frame is a key frame, as LeRobot encodes, for fast random access.
_CODEC, _OPTIONS = "libx264", {"crf": "23", "g": "2", "bf": "0", "preset": "veryfast"}


class NumberedFiles:
    """Files that follow each other: each is closed when it is large enough, between two episodes."""

    def __init__(self, out: str, path: str, **names: str) -> None:
        self._out, self._path, self._names = out, path, names
        self._number = -1
        self._stack = ExitStack()
        self._is_open = False

    @property
    def location(self) -> dict[str, int]:
        """Chunk and number of the current file."""
        return {"chunk_index": self._number // CHUNK_FILES, "file_index": self._number % CHUNK_FILES}

    def close(self) -> None:
        """Complete the current file, if there is one."""
        if self._is_open:
            self._complete()
            self._is_open = False
            self._stack.close()

    def abandon(self, error: BaseException) -> None:
        """Drop the current file, if there is one."""
        if self._is_open:
            self._is_open = False
            self._stack.__exit__(type(error), error, error.__traceback__)

    def _open_next(self) -> Any:
        self._number += 1
        self._is_open = True
        path = self._path.format(**self._names, **self.location)
        return self._stack.enter_context(atomic_file(join(self._out, path)))

    def _complete(self) -> None:
        """Write the end of the current file."""
        raise NotImplementedError


class Tables(NumberedFiles):
    """Parquet files of one schema, a row group per table."""

    _writer: pq.ParquetWriter
    _bytes: int

    def add(self, table: pa.Table) -> dict[str, int]:
        """Write rows that stay in one file, and return its chunk and number."""
        if not self._is_open:
            self._bytes = 0
            self._writer = pq.ParquetWriter(self._open_next(), table.schema)
        self._writer.write_table(table)
        self._bytes += table.nbytes
        location = self.location
        if self._bytes >= DATA_BYTES:
            self.close()
        return location

    def next_location(self) -> dict[str, int]:
        """Return chunk and number of the file that the next rows go to."""
        number = self._number + (not self._is_open)
        return {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}

    def _complete(self) -> None:
        self._writer.close()


class Videos(NumberedFiles):
    """MP4 files of one camera, in which episodes follow each other."""

    def __init__(self, out: str, key: str, rate_hz: float) -> None:
        """Check that PyAV is there.

        Raises:
            UserError: it is not installed.
        """
        try:
            import av
        except ImportError:
            raise UserError(
                "videos need PyAV: pip install 'amvur-annotator[video]', or give --photos frames or --photos none"
            ) from None
        super().__init__(out, VIDEO_PATH, video_key=key)
        self._av = av
        self._rate = Fraction(rate_hz).limit_denominator(1000)
        self._container: Any = None
        self._file: Any = None
        self._frames = self._start = 0

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Append a frame (H, W, 3) of even sides."""
        if not self._is_open:
            self._file = self._open_next()
            self._container = self._av.open(self._file, "w", format="mp4")
            self._stream = self._container.add_stream(_CODEC, rate=self._rate, options=_OPTIONS)
            self._stream.height, self._stream.width = pixels.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = 1 / self._rate
            self._frames = self._start = 0
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = self._frames, 1 / self._rate
        self._container.mux(self._stream.encode(frame))
        self._frames += 1

    def end_episode(self) -> dict[str, Any]:
        """Return where the episode lies: chunk and number of the file, and seconds in it."""
        location: dict[str, Any] = dict(self.location)
        location["from_timestamp"] = float(self._start / self._rate)
        location["to_timestamp"] = float(self._frames / self._rate)
        self._start = self._frames
        if self._file.tell() >= VIDEO_BYTES:
            self.close()
        return location

    def _complete(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


def write_tasks(out: str, tasks: Iterable[str]) -> None:
    """Write the texts of tasks, in the order of their numbers, as pandas stores a frame with texts as its index."""
    texts = list(tasks)
    index = "__index_level_0__"
    columns: list[dict[str, Any]] = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object"},
    ]
    about = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [column | {"metadata": None} for column in columns],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), index: pa.array(texts)})
    table = table.replace_schema_metadata({"pandas": json.dumps(about)})
    with atomic_file(join(out, "meta/tasks.parquet")) as file:
        pq.write_table(table, file)


def write_json(out: str, name: str, value: Any) -> None:
    """Write a file of `meta`."""
    write_atomic(join(out, "meta", name), json.dumps(value, indent=4, allow_nan=False).encode())


def info(rate_hz: float, facts: dict[str, Any], features: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of `meta/info.json`."""
    has_video = any(feature["dtype"] == "video" for feature in features.values())
    return {
        "codebase_version": "v3.0",
        "robot_type": "human_hands",
        **facts,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": DATA_BYTES >> 20,
        "video_files_size_in_mb": VIDEO_BYTES >> 20,
        "fps": int(rate_hz) if rate_hz == int(rate_hz) else rate_hz,
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if has_video else None,
        "features": features,
    }
