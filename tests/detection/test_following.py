"""Hands followed through videos: between detections, when they are lost, when they come and go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from annotator.detection.detector import DetectedHand
from annotator.detection.following import ExpectedHand, FrameHands, follow
from annotator.errors import UserError
from annotator.photos.crops import box_around_joints
from annotator.photos.decode import Photo
from tests.conftest import SHARED

MODEL = SHARED / "models" / "hand_landmarker.task"
SIZE = 640

#: A hand's joints about its centre, 100 pixels across.
SHAPE = np.random.default_rng(0).uniform(-50, 50, (21, 2))


class Scene:
    """Hands at known positions, a detector that misses some frames, and a network that sees a hand near its hand."""

    def __init__(self, *ways: dict[int, tuple[float, float]], missed: Sequence[int] = ()) -> None:
        self.ways, self.missed, self.detections = ways, missed, []
        count = 1 + max(max(way) for way in ways)
        self.frames = [Photo(np.zeros((1, 1, 3), np.uint8), width=SIZE, height=SIZE) for _ in range(count)]

    def number(self, photo: Photo) -> int:
        return next(k for k, frame in enumerate(self.frames) if frame is photo)

    def detect(self, photo: Photo) -> list[DetectedHand]:
        frame = self.number(photo)
        self.detections.append(frame)
        positions = [] if frame in self.missed else [way[frame] for way in self.ways if frame in way]
        joints = [SHAPE + position for position in positions]
        depth, joints3d = np.zeros(21), np.zeros((21, 3))
        return [DetectedHand(box_around_joints(j), True, 0.9, 1.0, j, depth, joints3d) for j in joints]

    def locate(self, expected: Sequence[ExpectedHand]) -> tuple[np.ndarray, np.ndarray]:
        joints, presence = np.zeros((len(expected), 21, 2)), np.zeros(len(expected))
        for k, hand in enumerate(expected):
            centre = (hand.box_xyxy[:2] + hand.box_xyxy[2:]) / 2
            frame = self.number(hand.frame)
            for way in self.ways:
                if frame in way and np.abs(centre - way[frame]).max() < 60:  # in the crop
                    joints[k], presence[k] = SHAPE + way[frame], 0.95
        return joints, presence

    def follow(self, every: int = 8, max_hands: int = 2) -> list[FrameHands]:
        found = list(follow(self.frames, self.detect, self.locate, every, max_hands))
        assert len(found) == len(self.frames)
        return found


def straight(frames: range, start=(100.0, 300.0), speed=(10.0, 0.0)) -> dict[int, tuple[float, float]]:
    return {k: (start[0] + speed[0] * k, start[1] + speed[1] * k) for k in frames}


def assert_all_found(scene: Scene, found: list[FrameHands]) -> None:
    for frame, hands in enumerate(found):
        expected = sorted(way[frame] for way in scene.ways if frame in way)
        centres = sorted(tuple((hand.joints2d_px - SHAPE).mean(0)) for hand in hands.hands)
        assert len(centres) == len(expected), frame
        np.testing.assert_allclose(centres, expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 8, 9, 10, 33])
def test_a_hand_is_in_every_frame_and_looks_are_few(count):
    scene = Scene(straight(range(count)))
    assert_all_found(scene, scene.follow())
    assert sorted(scene.detections) == sorted({*range(0, count, 8), count - 1})


def test_a_hand_that_waves_between_looks_is_followed():
    # Two waves from one detection to the next: the line between them misses the hand by up to 150 pixels.
    way = {k: (300 + 150 * np.sin(k * np.pi / 2), 300.0) for k in range(33)}
    scene = Scene(way)
    assert_all_found(scene, scene.follow())


def test_hands_that_the_detector_misses_at_a_look_stay():
    scene = Scene(straight(range(33)), missed=(16,))
    found = scene.follow()
    assert_all_found(scene, found)
    assert [hands.hands[0].source for hands in found[15:18]] == ["followed"] * 3
    assert found[24].hands[0].source == "detector"


def test_a_hand_that_only_the_network_sees_is_dropped_at_the_second_look_without_it():
    found = Scene(straight(range(33)), missed=range(1, 33)).follow()
    assert [len(hands.hands) for hands in found] == [1] * 16 + [0] * 17


def test_a_hand_that_comes_and_goes_is_in_its_frames_alone():
    scene = Scene(straight(range(3, 14)), straight(range(33), start=(100, 500)))
    assert_all_found(scene, scene.follow())
    assert len(scene.detections) <= 5 + 4  # before it came and after it went


def test_a_hand_that_appears_is_found_after_at_most_n_frames():
    way = straight(range(5, 12), start=(300, 300), speed=(0, 0))
    found = Scene(way, straight(range(33), start=(0, 0), speed=(0, 0))).follow(every=8)
    assert [len(hands.hands) for hands in found] == [1] * 5 + [2] * 7 + [1] * 21


def test_two_hands_that_meet_stay_two():
    scene = Scene(straight(range(33)), straight(range(33), start=(420, 460)))
    assert_all_found(scene, scene.follow())


def test_at_most_max_hands_per_frame():
    scene = Scene(
        straight(range(9)), straight(range(9), start=(100, 500)), straight(range(9), start=(100, 80))
    )
    assert {len(hands.hands) for hands in scene.follow(max_hands=2)} == {2}


def test_no_hand_at_all():
    scene = Scene(straight(range(33)), missed=range(33))
    assert [hands.hands for hands in scene.follow()] == [[]] * 33 and len(scene.detections) == 5


def test_an_error_of_the_detector_is_that_of_its_frame():
    scene = Scene(straight(range(17)))

    def detect(photo):
        if scene.number(photo) == 16:
            raise ValueError("a bug")
        return scene.detect(photo)

    found = list(
        follow(
            scene.frames,
            detect,
            lambda expected: (np.zeros((len(expected), 21, 2)), np.zeros(len(expected))),
            8,
            2,
        )
    )
    assert [type(hands.error) for hands in found] == [type(None)] * 16 + [ValueError]

    def unusable(photo):
        raise UserError("no model")

    with pytest.raises(UserError):
        list(follow(scene.frames, unusable, scene.locate, 8, 2))


@pytest.fixture(scope="module")
def real():
    """The detector and the locator of the shipped network."""
    pytest.importorskip("mediapipe", reason="MediaPipe (extra 'detect') is not installed")
    if not MODEL.is_file():
        pytest.skip("the hand detector's model is not beside this checkout")
    from annotator.detection.detector import HandDetector
    from annotator.detection.locator import HandLocator
    from annotator.model.checkpoint_file import read_checkpoint

    detector = HandDetector(str(MODEL))
    yield detector, HandLocator(read_checkpoint("default"))
    detector.close()


def test_hands_of_a_real_photo_are_followed_as_a_camera_pans_over_it(real, hand_scenes):
    detector, locator = real
    path = sorted((hand_scenes / "images").glob("*.jpg"))[3]
    with Image.open(path) as file:
        wide = np.pad(np.asarray(file.convert("RGB")), ((0, 0), (60, 60), (0, 0)), mode="edge")
    starts = [60 + round(55 * np.sin(k / 3)) for k in range(18)]
    frames = [Photo(np.ascontiguousarray(wide[:, x : x + 640]), width=640, height=480) for x in starts]
    frames[13:] = [Photo(np.full((480, 640, 3), 180, np.uint8), width=640, height=480)] * 5
    detections = []

    def detect(photo):
        detections.append(photo)
        return detector.detect(photo.pixels)

    found = list(follow(frames, detect, locator, 8, 2))
    still = [hand.box_xyxy + [starts[0] - 60, 0] * 2 for hand in found[0].hands]
    assert still and len(detections) < 10
    for start, hands in zip(starts[:13], found, strict=False):
        assert len(hands.hands) == len(still)
        for hand, box in zip(hands.hands, still, strict=True):
            true = box - [start - 60, 0, start - 60, 0]
            side = (true[2:] - true[:2]).max()
            assert np.abs(hand.box_xyxy - true).max() < 0.2 * side
    assert all(not hands.hands for hands in found[13:])
