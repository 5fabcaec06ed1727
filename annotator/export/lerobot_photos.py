"""The photos of a LeRobot data set: in videos, or as files within the frames, with statistics of their colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotator.export.lerobot_files import DATA_BYTES, Videos
from annotator.export.lerobot_stats import ColourStats, Summary
from annotator.export.photo_encoding import as_others_read
from annotator.export.stored_photos import Address, PhotoOrError, Positions, stored_photos
from annotator.photos.decode import decode_photo
from annotator.photos.errors import PhotoError

#: Forms of the photos.
FORMS = ("video", "frames", "none")

#: Key of the photos.
CAMERA = "observation.images.camera"

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class EpisodePhotos:
    """The photos of an episode."""

    location: dict[str, Any] = field(default_factory=dict)  # of a video: file and seconds
    files: list[bytes] = field(default_factory=list)  # of frames: a JPEG or PNG file each
    stats: Summary | None = None


class CameraPhotos:
    """The photos of one camera, all of one size."""

    def __init__(self, out: str, form: str, rate_hz: float, size: Size) -> None:
        """Begin without photos; `form` is one of `FORMS`.

        Raises:
            UserError: videos are wanted, and PyAV is not installed.
        """
        self._form, self._size, self._rate_hz = form, size, rate_hz
        self._positions = Positions()
        self._videos = Videos(out, CAMERA, rate_hz) if form == "video" else None
        self._files: list[bytes] = []
        self._bytes = 0
        self._colours, self._all_colours = ColourStats(), ColourStats()

    @property
    def is_full(self) -> bool:
        """Whether an episode's files are as large as memory should hold."""
        return self._bytes >= DATA_BYTES

    def of(self, addresses: Sequence[Address]) -> Iterator[PhotoOrError | None]:
        """Yield the stored photo of each address, or the error; None where no photos are wanted."""
        if self._form == "none":
            return iter([None] * len(addresses))
        return stored_photos(addresses, self._positions.of(addresses))

    def add(self, size: Size, stored: PhotoOrError | None) -> str | None:
        """Add a photo to the episode, or return the reason to leave its frame out; `size` is the label's."""
        if stored is None:
            return None
        if size != self._size:
            return f"hand in a photo whose size is not {self._size[0]} x {self._size[1]} pixels"
        try:
            if isinstance(stored, PhotoError):
                raise stored
            pixels = _pixels(stored, size)
            if pixels.shape[:2] != size[::-1]:
                return "hand in a photo of another size than the label"
            if self._videos is None:
                self._files.append(as_others_read(stored).data)
                self._bytes += len(self._files[-1])
        except PhotoError as error:
            return f"hand without its photo: {error.reason}"
        if self._videos is not None:
            # H.264 needs even sides; coordinates of pixels stay.
            odd = [(0, side % 2) for side in pixels.shape[:2]]
            self._videos.add(np.pad(pixels, [*odd, (0, 0)], mode="edge"))
        self._colours.add(pixels)
        return None

    def end_episode(self) -> EpisodePhotos:
        """Return the photos since the last episode."""
        if self._form == "none":
            return EpisodePhotos()
        location = {} if self._videos is None else self._videos.end_episode()
        episode = EpisodePhotos(location, self._files, self._colours.summary())
        self._all_colours.merge(self._colours)
        self._files, self._bytes, self._colours = [], 0, ColourStats()
        return episode

    def stats(self) -> Summary | None:
        """Return the statistics of all episodes."""
        return None if self._form == "none" else self._all_colours.summary()

    def feature(self) -> dict[str, Any] | None:
        """Return the entry of `info.json`."""
        if self._form == "none":
            return None
        width, height = self._size
        about: dict[str, Any] = {"dtype": "image"}
        if self._videos is not None:
            width, height = width + width % 2, height + height % 2
            facts: dict[str, Any] = {"height": height, "width": width, "codec": "h264", "pix_fmt": "yuv420p"}
            facts |= {"is_depth_map": False, "fps": self._rate_hz, "channels": 3}
            named = {f"video.{key}": fact for key, fact in facts.items()}
            about = {"dtype": "video", "info": named | {"has_audio": False}}
        return about | {"shape": [height, width, 3], "names": ["height", "width", "channels"]}

    def close(self) -> None:
        """Complete the current file."""
        if self._videos is not None:
            self._videos.close()

    def abandon(self, error: BaseException) -> None:
        """Drop the current file."""
        if self._videos is not None:
            self._videos.abandon(error)


def _pixels(stored: bytes | NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Return a photo's upright pixels (H, W, 3).

    Raises:
        PhotoError: the photo can't be decoded.
    """
    if not isinstance(stored, bytes):
        return stored
    photo = decode_photo(stored)
    if (photo.width, photo.height) == size and photo.pixels.shape[:2] != size[::-1]:
        return np.asarray(Image.fromarray(photo.pixels).resize(size))  # decoded at a reduced size
    return photo.pixels
