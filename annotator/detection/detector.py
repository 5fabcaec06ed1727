"""MediaPipe's hand landmarker: detect the hands in one photo, with boxes, sides and joints.

Its landmarks are FreiHAND's joints in FreiHAND's order. World landmarks are in camera axes, x right, y down, z
forward. The side is the true one, not that of a mirrored photo as in older releases. Measured with MediaPipe 1.2 on
2,062 photos of right hands: 2,060 detected, 5 of them as left, `chirality` positive for 2,051.

It misses hands that fill the photo. A border of the photo's own edge pixels, half its side wide, fixes this. Of 207
such photos (100 x 100) it detects 79 % without a border and all with it. With a border of one colour it detects 92 %.
Enlarging the photo does not help. On scenes the border hurts (recall 0.97 to 0.93). So small photos are searched with
the border first, larger ones without, and the other way only if no hand is detected. In 179 pieces of scenes without a
hand, neither way detected any.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotator.detection.duplicates import distinct
from annotator.detection.search_views import search_rounds
from annotator.errors import UserError, first_line
from annotator.model.landmarker.bundle import MODEL_NAME, WHERE_TO_GET, read_bundle
from annotator.photos.crops import box_around_joints
from annotator.runtime.per_process import once_per_process
from annotator.runtime.stderr import quiet_stderr

#: Sufficient shorter side of a photo: the landmark network's input has 224 pixels, so that a hand of a quarter of the
#: photo keeps its resolution.
ENOUGH_PX = 4 * 224

#: Maximum longer side of a photo that is treated as the crop around a hand.
CROP_LIKE_PX = 256

#: Width of the border relative to the shorter side.
BORDER = 0.5

#: Misfit of 2D and 3D joints, relative to the hand's size, at which `detection_score` is 1/2.
_HALF_SCORE_MISFIT = 0.05

#: `quick` searches with and without the border; `thorough` then also rotated photos and tiles (`search_views.py`).
Search = Literal["quick", "thorough"]

#: Minimum `detection_score` and longer side of a hand in the thorough search, whose many views give false detections:
#: 8 of 11 false ones are below, 1 of 44 true ones.
_THOROUGH_MIN_SCORE = 0.5
_THOROUGH_MIN_PX = 32

#: Rounds of views beside a hand that was found: they find most of the others in a sixth of the time of all rounds.
FEW_ROUNDS = 2

#: Factor from the z of image landmarks (image widths) to the unit of x; nominally 1. The open hand fits best at 1.3;
#: bone lengths vary least between photos at 1.5 to 1.8 (170 hands of hand-scenes).
DEPTH_SCALE = 1.28


@dataclass(frozen=True, eq=False)
class DetectedHand:
    """One hand of a photo."""

    box_xyxy: NDArray[np.float64]  # (4,) photo pixels, around the joints; may reach beyond the photo
    is_right: bool
    side_score: float  # the detector's probability that the side is correct, 0.5 to 1
    detection_score: float  # see `agreement`
    joints2d_px: NDArray[np.float64]  # (21, 2) photo pixels, FreiHAND's order
    landmark_depth_px: NDArray[np.float64]  # (21,) photo pixels, relative to the wrist, larger is farther
    #: (21, 3) wrist-relative, camera axes; at the detector's standard hand size
    joints3d_mm: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DetectorModel:
    """A detector's file with its content, so that other machines do not need its path."""

    path: str  # or URL
    bundle: bytes
    id: str  # for labels, with a hash of its content


class HandDetector:
    """MediaPipe's hand landmarker, ready to search photos. One per process and thread."""

    def __init__(self, model: str | DetectorModel, max_hands: int = 2, search: Search = "quick") -> None:
        """Load a model.

        Args:
            model: path or URL of `hand_landmarker.task`, or a model of `read_model`.
            max_hands: maximum hands per photo.
            search: `thorough` searches photos with fewer hands again, rotated and in enlarged tiles.

        Raises:
            UserError: the package or the model is missing, or the file is another kind of model.
        """
        if isinstance(model, str):
            model = read_model(model)
        from mediapipe import Image as MediaPipeImage
        from mediapipe import ImageFormat
        from mediapipe.tasks.python import BaseOptions
        from mediapipe.tasks.python.vision import HandLandmarker, HandLandmarkerOptions

        self._max_hands, self._search = max_hands, search
        # Any hand may be detected twice, and must not displace another.
        options = HandLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=model.bundle), num_hands=2 * max_hands
        )
        self._image = lambda pixels: MediaPipeImage(image_format=ImageFormat.SRGB, data=pixels)
        # MediaPipe logs only at its start and at its first photo.
        with quiet_stderr():
            try:
                self._landmarker = HandLandmarker.create_from_options(options)
            except (RuntimeError, ValueError, OSError) as error:
                reason = first_line(error)
                raise UserError(f"'{model.path}' can't be used ({reason}): give {WHERE_TO_GET}") from None
            # Closing a landmarker during garbage collection can wait forever for a thread that has ended.
            self._closing = weakref.finalize(self, self._landmarker.close)
            self._closing.atexit = False  # no thread can start at exit
            self._detect_in_view(np.zeros((8, 8, 3), np.uint8))

    def close(self) -> None:
        """Free the network now, instead of with the detector."""
        self._closing()

    def detect(
        self, pixels: NDArray[np.uint8], width: int | None = None, height: int | None = None
    ) -> list[DetectedHand]:
        """Detect the hands of a photo, the largest first.

        Args:
            pixels: (H, W, 3) RGB, the photo or a scaled-down version.
            width: of the photo, if `pixels` is scaled down. height: likewise.
        """
        full, size = pixels, np.array([width or pixels.shape[1], height or pixels.shape[0]], np.float64)
        shrink = min(pixels.shape[:2]) // ENOUGH_PX
        if shrink > 1:
            pixels = np.asarray(Image.fromarray(pixels).reduce(shrink))
        bordered_first = max(pixels.shape[:2]) <= CROP_LIKE_PX
        detected = self._detect_in_view(pixels, bordered_first) or self._detect_in_view(
            pixels, not bordered_first
        )
        hands = _distinct(_hands(detected, size))[: self._max_hands]
        if self._search == "thorough" and len(hands) < self._max_hands:
            more = _hands(self._search_thoroughly(full, FEW_ROUNDS if hands else None), size)
            more.sort(key=lambda hand: -hand.detection_score)  # MediaPipe orders the hands of one view only
            hands = _distinct(more, hands)[: self._max_hands]
        return sorted(hands, key=lambda hand: -float(np.prod(hand.box_xyxy[2:] - hand.box_xyxy[:2])))

    def _search_thoroughly(self, pixels: NDArray[np.uint8], rounds: int | None) -> list[Any]:
        """Return the hands of some rounds of views, or of the first with a detection (None): see `_detect_in_view`."""
        (height, width), detected = pixels.shape[:2], list[Any]()
        to_shares = np.array([width, height, width], np.float64)
        for views in islice(search_rounds(width, height), rounds):
            for view in views:
                part = view.cut(pixels)
                for shares, joints3d_mm, *side in self._detect_in_view(part):
                    points = view.to_photo(shares * [part.shape[1], part.shape[0], part.shape[1]])
                    joints3d_mm = view.rotated_back(joints3d_mm)
                    if view.holds(points, width, height) and _is_sure(points[:, :2], joints3d_mm):
                        detected.append((points / to_shares, joints3d_mm, *side))
            if detected and rounds is None:
                break
        return detected

    def _detect_in_view(self, pixels: NDArray[np.uint8], bordered: bool = False) -> list[Any]:
        """Return (landmarks (21, 3), joints (21, 3) in mm, is right, side score) per hand.

        Landmarks are fractions of the photo's width, height and, for depth, width.
        """
        border = round(BORDER * min(pixels.shape[:2])) if bordered else 0
        inner = np.array(pixels.shape[1::-1], np.float64)
        if border:
            pixels = np.pad(pixels, ((border, border), (border, border), (0, 0)), mode="edge")
        outer = np.array(pixels.shape[1::-1], np.float64)
        # Its C++ code warns here too, depending on memory alignment.
        with quiet_stderr():
            result = self._landmarker.detect(self._image(np.ascontiguousarray(pixels)))
        return [
            (
                (_coordinates(points) * [*outer, DEPTH_SCALE * outer[0]] - [border, border, 0])
                / [*inner, inner[0]],
                1000 * _coordinates(world),
                side[0].category_name == "Right",
                float(side[0].score),
            )
            for points, world, side in zip(
                result.hand_landmarks, result.hand_world_landmarks, result.handedness, strict=True
            )
        ]


def _coordinates(points: Any) -> NDArray[np.float64]:
    """Convert MediaPipe's points to an array (21, 3)."""
    return np.array([[point.x, point.y, point.z] for point in points])


@once_per_process(lambda model, max_hands, search: (model.id, max_hands, search))
def detector_of_process(model: DetectorModel, max_hands: int, search: Search) -> HandDetector:
    """Return this process's detector; the first call loads it."""
    return HandDetector(model, max_hands, search)


def _hands(detected: list[Any], size_px: NDArray[np.float64]) -> list[DetectedHand]:
    return [_hand(shares * [*size_px, size_px[0]], *rest) for shares, *rest in detected]


def _hand(
    landmarks_px: NDArray[np.float64], joints3d_mm: NDArray[np.float64], is_right: bool, side_score: float
) -> DetectedHand:
    joints2d_px = landmarks_px[:, :2]
    return DetectedHand(
        box_xyxy=box_around_joints(joints2d_px),
        is_right=is_right,
        side_score=side_score,
        detection_score=agreement(joints2d_px, joints3d_mm),
        joints2d_px=joints2d_px,
        landmark_depth_px=landmarks_px[:, 2] - landmarks_px[0, 2],
        joints3d_mm=joints3d_mm - joints3d_mm[0],
    )


def _distinct(hands: list[DetectedHand], before: Sequence[DetectedHand] = ()) -> list[DetectedHand]:
    """Return each hand once: those of `before`, then the others in their order."""
    scores = [2.0] * len(before) + [hand.detection_score for hand in hands]
    both = [*before, *hands]
    return [both[index] for index in distinct([hand.joints2d_px for hand in both], scores)]


def check_search(search: str) -> None:
    """Raise a `UserError` if `search` is not one of `Search`."""
    if search not in get_args(Search):
        raise UserError(f"search is {search!r}, may be {', '.join(get_args(Search))}")


def _is_sure(joints2d_px: NDArray[np.float64], joints3d_mm: NDArray[np.float64]) -> bool:
    is_large = float(np.ptp(joints2d_px, axis=0).max()) >= _THOROUGH_MIN_PX
    return is_large and agreement(joints2d_px, joints3d_mm) >= _THOROUGH_MIN_SCORE


def agreement(joints2d_px: NDArray[np.floating], joints3d_mm: NDArray[np.floating]) -> float:
    """Return the agreement of 3D joints (21, 3), camera axes, with 2D joints (21, 2) after scale and shift, 0 to 1.

    MediaPipe gives no detection score. But it predicts 2D and 3D joints separately, and they differ where it is
    unsure. `1 / (1 + (e / 0.05)^2)`, where e is the RMS distance over the diagonal of the joints' 2D box.
    """
    flat = joints3d_mm[:, :2] - joints3d_mm[:, :2].mean(0)
    target = joints2d_px - joints2d_px.mean(0)
    scale = (flat * target).sum() / max(float((flat * flat).sum()), 1e-12)
    misfit = np.sqrt(((target - scale * flat) ** 2).sum(1).mean())
    diagonal = max(float(np.linalg.norm(np.ptp(joints2d_px, axis=0))), 1e-12)
    return float(1 / (1 + (misfit / diagonal / _HALF_SCORE_MISFIT) ** 2))


def model_file(named: str | None) -> str | None:
    """Return the path of the model file for a path, URL, `mediapipe` or None, or None without a file."""
    if named not in (None, "mediapipe"):
        return named
    return MODEL_NAME if Path(MODEL_NAME).exists() else None


def read_model(named: str | None) -> DetectorModel:
    """Read the detector's model from a path, a URL, `mediapipe` or None (the file in this folder).

    Raises:
        UserError: MediaPipe is not installed, the file is missing, or it is another kind of file.
    """
    if find_spec("mediapipe") is None:
        raise UserError("detecting hands needs MediaPipe: pip install 'amvur-annotator[detect]'")
    path = model_file(named)
    if path is None:
        raise UserError(f"there is no {MODEL_NAME} in this folder: give the path or URL of {WHERE_TO_GET}")
    bundle = read_bundle(path)
    return DetectorModel(path, bundle, f"hand_landmarker-{hashlib.sha256(bundle).hexdigest()[:12]}")
