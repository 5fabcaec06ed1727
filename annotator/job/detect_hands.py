"""The detector's part of the decode stage: hands of single photos, and of consecutive frames of a video."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from annotator.detection.detector import DetectedHand, HandDetector
from annotator.detection.following import ExpectedHand, Floats, FrameHands, detect_in, follow
from annotator.photos.decode import Photo
from annotator.sources.entry import Entry

#: An entry with its row, and its photo unless it is unreadable.
DecodedEntry = tuple[Entry, dict[str, Any], Photo | None]

#: Return this process's detector; the first call loads it.
GetDetector = Callable[[], HandDetector]


@dataclass(frozen=True)
class FollowSettings:
    """Settings for videos: the detector runs on every Nth frame, N = `detect_every`."""

    locator: Callable[[], Any]  # returns this process's `HandLocator`; the first call loads it
    detect_every: int
    frame_step: int  # from one frame of the source to the next
    max_hands: int

    def locate(self, expected: Sequence[ExpectedHand]) -> tuple[Floats, Floats]:
        """Locate hands, see `annotator.detection.following.Locate`."""
        joints2d_px, presence = self.locator()(expected)
        return joints2d_px, presence


def detect_hands(
    photos: Iterable[DecodedEntry], get_detector: GetDetector, follow_settings: FollowSettings | None = None
) -> Iterator[tuple[Entry, dict[str, Any], Photo | None, FrameHands | None]]:
    """Yield photos with their hands, in order. No hands where the photo is unreadable or its list has boxes.

    Raises:
        UserError: the detector cannot be used.
    """

    def detect(photo: Photo) -> list[DetectedHand]:
        return get_detector().detect(photo.pixels, photo.width, photo.height)

    for is_run, run in groupby(photos, _VideoRunKey(follow_settings)):
        if not is_run or follow_settings is None:
            for entry, row, photo in run:
                hands = None if photo is None or entry.lists_boxes else detect_in(photo, detect)
                yield entry, row, photo, hands
            continue
        waiting: deque[DecodedEntry] = deque()
        frames = _photos(run, waiting)
        for hands in follow(
            frames, detect, follow_settings.locate, follow_settings.detect_every, follow_settings.max_hands
        ):
            yield (*waiting.popleft(), hands)


def _photos(run: Iterable[DecodedEntry], waiting: deque[DecodedEntry]) -> Iterator[Photo]:
    for opened in run:
        waiting.append(opened)
        if opened[2] is not None:
            yield opened[2]


class _VideoRunKey:
    """A key that is equal for consecutive frames of a video, and 0 for all other photos."""

    def __init__(self, follow_settings: FollowSettings | None) -> None:
        self._settings, self._run, self._next = follow_settings, 0, ("", -1)

    def __call__(self, opened: DecodedEntry) -> int:
        entry, _, photo = opened
        if self._settings is None or photo is None or entry.frame_index is None or entry.lists_boxes:
            return 0
        address = entry.path, entry.frame_index
        if address != self._next:  # also at the end of a shard, and after an unreadable frame
            self._run += 1
        self._next = entry.path, entry.frame_index + self._settings.frame_step
        return self._run
