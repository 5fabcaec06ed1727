"""Detect hands in videos: the detector runs on every Nth frame, and the network follows the hands between.

A hand in two successive detections is expected on the line between them. Any other hand is expected where it was
detected, in later and earlier frames. The cheap part of the network (`locator.py`) checks each expected hand: its
joints give the box, and low presence means a lost hand. A lost hand is expected again from nearer frames; then the
detector runs. All expected hands of a round are one batch, in less than half the time of going from frame to frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from annotator.detection.detector import DetectedHand
from annotator.detection.duplicates import distinct
from annotator.errors import UserError
from annotator.labels.side import right_score
from annotator.photos.crops import box_around_joints
from annotator.photos.decode import Photo

Floats = NDArray[np.floating]

#: Run the detector on every Nth frame of a video by default.
DETECT_EVERY = 8

#: Presence of a hand below which it is lost.
MIN_PRESENCE_TO_FOLLOW = 0.5

#: A hand and its expectation differ in size by at most this factor, and in position by at most this many hand sizes.
_MAX_RESIZE, _MAX_MOVE = 2.0, 2.0

#: Cost of another side when hands of two frames are matched, in hand sizes.
_OTHER_SIDE = 0.5


@dataclass(frozen=True, eq=False)
class FollowedHand:
    """One hand of one frame."""

    box_xyxy: Floats  # (4,) photo pixels
    right_score: float  # probability of a right hand
    joints2d_px: Floats  # (21, 2) photo pixels
    score: float  # of the detector plus one, or the network's presence: detected hands come first
    source: str  # `detector` or `followed`


@dataclass(frozen=True, eq=False)
class ExpectedHand:
    """The expected position of a hand in a frame."""

    frame: Photo
    box_xyxy: Floats  # (4,) photo pixels
    right_score: float


#: Locate expected hands: joints (n, 21, 2) in photo pixels, and the presence (n,) of a hand.
Locate = Callable[[Sequence[ExpectedHand]], tuple[Floats, Floats]]

#: Detect the hands of a photo.
Detect = Callable[[Photo], list[DetectedHand]]


@dataclass(eq=False)
class FrameHands:
    """The hands of a frame, or the detector's error."""

    hands: list[FollowedHand] = field(default_factory=list)
    error: Exception | None = None


def detect_in(photo: Photo, detect: Detect) -> FrameHands:
    """Detect the hands of one photo.

    Raises:
        UserError: the detector cannot be used.
    """
    try:
        return FrameHands([_detected(hand) for hand in detect(photo)])
    except UserError:  # an unusable detector fails for every photo
        raise
    except Exception as error:  # a bug of the detector fails one photo, not the run
        return FrameHands(error=error)


def follow(
    frames: Iterable[Photo], detect: Detect, locate: Locate, every: int, max_hands: int
) -> Iterator[FrameHands]:
    """Yield the hands of consecutive frames of one video, in order; `every` + 1 frames are in memory.

    The detector runs on the first frame, every Nth from there, the last, and where a hand is lost.

    Raises:
        UserError: the detector cannot be used.
    """
    waiting = iter(frames)
    held = list(islice(waiting, 1))
    start = detect_in(held[0], detect) if held else FrameHands()
    while held:
        held += islice(waiting, every)
        if len(held) == 1:
            yield start
            return
        try:
            found = _Segment(held, start, detect, locate).found(max_hands)
        except UserError:
            raise
        except Exception as error:  # an internal bug fails these frames, not the run
            found = [FrameHands(error=error) for _ in held]
        yield from found[:-1]
        held, start = held[-1:], found[-1]


@dataclass(eq=False)
class _Chain:
    """One hand over the frames of a segment."""

    hands: dict[int, FollowedHand]
    wanted: set[int]  # frames in which it is expected
    step: int = 0  # direction away from the only end that shows it; 0: both do
    tried: set[tuple[int, int | None, int | None]] = field(default_factory=set)

    def around(self, frame: int) -> tuple[int | None, int | None]:
        """Return the nearest frames with the hand, before and after."""
        before = max((k for k in self.hands if k < frame), default=None)
        return before, min((k for k in self.hands if k > frame), default=None)

    def missing(self) -> list[int]:
        """Return the frames that lack the hand although it is expected."""
        return sorted(self.wanted - self.hands.keys())

    def next_lost(self) -> list[int]:
        """Return the missing frames that lie between two frames with the hand, or beside one."""
        return [
            frame
            for frame in self.missing()
            if None not in self.around(frame) or {frame - 1, frame + 1} & self.hands.keys()
        ]

    def has(self, frame: int) -> bool:
        """Return whether the frame has the hand, and so has each frame from its only detection on."""
        if not self.step:
            return frame in self.hands
        start = min(self.hands) if self.step > 0 else max(self.hands)
        return all(k in self.hands for k in range(start, frame + self.step, self.step))

    def expected(self, frame: int, photo: Photo) -> ExpectedHand:
        """Return the expected position of the hand, from the nearest frames that have it."""
        before, after = (None if k is None else (k, self.hands[k]) for k in self.around(frame))
        if before is None or after is None:
            hand = (before or after or (0, next(iter(self.hands.values()))))[1]
            return ExpectedHand(photo, hand.box_xyxy, hand.right_score)
        share = (frame - before[0]) / (after[0] - before[0])
        return ExpectedHand(
            photo,
            (1 - share) * before[1].box_xyxy + share * after[1].box_xyxy,
            (1 - share) * before[1].right_score + share * after[1].right_score,
        )


class _Segment:
    """The frames from one detection to the next, both included."""

    def __init__(self, frames: list[Photo], start: FrameHands, detect: Detect, locate: Locate) -> None:
        self._frames, self._detect, self._locate = frames, detect, locate
        self._last = len(frames) - 1
        self._detections = {0: start, self._last: detect_in(frames[-1], detect)}
        self._single: list[tuple[int, FollowedHand]] = []  # hands that only a further detection shows
        self._chains = self._chains_of_ends()

    def found(self, max_hands: int) -> list[FrameHands]:
        """Return the hands of each frame, at most `max_hands`, the largest first."""
        self._locate_missing()
        while lost := [k for chain in self._chains for k in chain.next_lost() if k not in self._detections]:
            self._detect_again(lost[0])
            self._locate_missing()
        return [self._of_frame(k, max_hands) for k in range(len(self._frames))]

    def _chains_of_ends(self) -> list[_Chain]:
        """Return chains of the hands of both ends."""
        before, after = self._detections[0].hands, self._detections[self._last].hands
        pairs = _matched(before, after)
        between = set(range(1, self._last))
        chains = [_Chain({0: before[i], self._last: after[j]}, between) for i, j in pairs.items()]
        for i, hand in enumerate(before):
            if i not in pairs:  # no further than over one detection that misses it
                end = {self._last} if hand.source == "detector" else set()
                chains.append(_Chain({0: hand}, between | end, step=1))
        for j, hand in enumerate(after):
            if j not in pairs.values():
                chains.append(_Chain({self._last: hand}, between | {0}, step=-1))
        return chains

    def _locate_missing(self) -> None:
        """Locate missing hands, each from the nearest frames that have it, until no frame gains one."""
        while True:
            tries: list[tuple[_Chain, int, ExpectedHand]] = []
            for chain in self._chains:
                for frame in chain.missing():
                    key = frame, *chain.around(frame)
                    if key not in chain.tried:
                        chain.tried.add(key)
                        tries.append((chain, frame, chain.expected(frame, self._frames[frame])))
            if not tries:
                return
            joints2d_px, presence = self._locate([hand for _, _, hand in tries])
            for (chain, frame, expected), joints, present in zip(tries, joints2d_px, presence, strict=True):
                hand = _located(expected, joints, float(present))
                if hand is not None:
                    chain.hands[frame] = hand

    def _detect_again(self, frame: int) -> None:
        """Detect a lost hand, and add all other hands of this frame."""
        photo = self._frames[frame]
        self._detections[frame] = shown = detect_in(photo, self._detect)
        expected = [chain.hands.get(frame) or chain.expected(frame, photo) for chain in self._chains]
        pairs = _matched(expected, shown.hands)
        for i, j in pairs.items():
            if frame in self._chains[i].missing():
                self._chains[i].hands[frame] = shown.hands[j]
        self._single += [(frame, hand) for j, hand in enumerate(shown.hands) if j not in pairs.values()]

    def _of_frame(self, frame: int, max_hands: int) -> FrameHands:
        hands = [chain.hands[frame] for chain in self._chains if chain.has(frame)]
        hands += [hand for k, hand in self._single if k == frame]
        kept = distinct([hand.joints2d_px for hand in hands], [hand.score for hand in hands])
        hands = sorted((hands[k] for k in kept), key=lambda hand: -hand.score)[:max_hands]
        hands.sort(key=lambda hand: -float(np.prod(hand.box_xyxy[2:] - hand.box_xyxy[:2])))
        detection = self._detections.get(frame)
        return FrameHands(hands, None if detection is None or hands else detection.error)


def _detected(hand: DetectedHand) -> FollowedHand:
    score = right_score(hand.is_right, hand.side_score)
    return FollowedHand(hand.box_xyxy, score, hand.joints2d_px, 1 + hand.detection_score, "detector")


def _located(expected: ExpectedHand, joints2d_px: Floats, presence: float) -> FollowedHand | None:
    """Return the hand that the network locates; None if it is lost, or has left the frame."""
    if presence < MIN_PRESENCE_TO_FOLLOW or not np.isfinite(joints2d_px).all():
        return None
    box = box_around_joints(joints2d_px)
    resize = _size(box) / _size(expected.box_xyxy)
    centre = (box[:2] + box[2:]) / 2
    is_inside = (centre >= 0).all() and (centre <= [expected.frame.width, expected.frame.height]).all()
    if not (1 / _MAX_RESIZE <= resize <= _MAX_RESIZE and is_inside):
        return None
    return FollowedHand(box, expected.right_score, joints2d_px, presence, "followed")


def _size(box_xyxy: Floats) -> float:
    return max(float((box_xyxy[2:] - box_xyxy[:2]).max()), 1e-9)


def _matched(some: Sequence[FollowedHand | ExpectedHand], others: Sequence[FollowedHand]) -> dict[int, int]:
    """Return pairs of the same hand, by index: the nearest positions; among near ones, the same side."""
    cost = np.array([[_distance(hand, other) for other in others] for hand in some])
    if not cost.size:
        return {}
    from scipy.optimize import linear_sum_assignment  # decoders of photos start sooner without it

    rows, columns = linear_sum_assignment(cost)
    return {
        int(row): int(column)
        for row, column in zip(rows, columns, strict=True)
        if cost[row, column] <= _MAX_MOVE
    }


def _distance(hand: FollowedHand | ExpectedHand, other: FollowedHand) -> float:
    """Return the distance of two boxes in hand sizes, with the cost of another side."""
    move = (hand.box_xyxy[:2] + hand.box_xyxy[2:] - other.box_xyxy[:2] - other.box_xyxy[2:]) / 2
    distance = np.linalg.norm(move) / max(_size(hand.box_xyxy), _size(other.box_xyxy))
    return float(distance + _OTHER_SIDE * abs(hand.right_score - other.right_score))
