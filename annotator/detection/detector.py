"""MediaPipe's hand landmarker: the hands in one photo, with boxes, sides and joints.

Its landmarks are FreiHAND's joints in FreiHAND's order. Its world landmarks are in camera axes, x right, y down, z
forward. The side it reports is the true one, not that of a mirrored photo as in older releases. Measured with
MediaPipe 1.2 on 2,062 photos of right hands: 2,060 found, 5 said to be left, `chirality` positive for 2,051.

It misses hands that fill the photo. A border of the photo's own edge pixels, half its side wide, mends that: of
207 such photos (100 x 100) it finds 79 % as they are, all with the border, 92 % with a border of one colour; larger
pixels do nothing. On scenes the border hurts (recall 0.97 to 0.93). So a small photo is looked at with the border
first, a larger one as it is, and the other way only if nothing was found. In 179 pieces of scenes without a hand,
neither way found any.
"""

from __future__ import annotations

import hashlib
import io
import weakref
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotator.detection.duplicates import distinct
from annotator.detection.views import search_rounds
from annotator.errors import UserError, first_line
from annotator.photos.crops import box_around_joints
from annotator.runtime.stderr import quiet_stderr
from annotator.storage.files import read_whole

#: The landmarks' network sees a hand at 224 pixels: of a photo so large on its shorter side, a hand that takes a
#: quarter still has as many.
ENOUGH_PX = 4 * 224

#: A photo no larger is taken for the crop around a hand.
CROP_LIKE_PX = 256

#: Width of the border over the shorter side.
BORDER = 0.5

#: The fit between its two answers, of a share of the hand's size, at which `detection_score` is 1/2.
_HALF_SCORE_MISFIT = 0.05

#: How long a photo without a hand is searched: `quick`, one look and one with the border turned about; `thorough`, then
#: also turned and in tiles (`views.py`).
Search = Literal["quick", "thorough"]

#: A find of the second look counts from this `detection_score` and this longer side on. So many looks find hands where
#: there are none: of 11 such finds 8 are below, of 44 true ones one.
_AGAIN_MIN_SCORE = 0.5
_AGAIN_MIN_PX = 32

#: The name under which it is given out.
MODEL_NAME = "hand_landmarker.task"

#: Depth of its image landmarks in the unit of x, over the z that it returns in image widths; nominally 1. At 1.3 the
#: open hand fits them best, at 1.5 to 1.8 bones keep their lengths best from photo to photo (170 hands of hand-scenes).
DEPTH_SCALE = 1.28

_WHERE_TO_GET = "MediaPipe's hand_landmarker.task, from https://ai.google.dev/edge/mediapipe/solutions/vision/hand_landmarker"


@dataclass(frozen=True, eq=False)
class FoundHand:
    """One hand of a photo."""

    box_xyxy: NDArray[np.float64]  # (4,) photo pixels, around the joints; may reach beyond the photo
    is_right: bool
    side_score: float  # the detector's probability that `is_right` is right, 0.5 to 1
    detection_score: float  # see `agreement`
    joints2d_px: NDArray[np.float64]  # (21, 2) photo pixels, FreiHAND's order
    landmark_depth_px: NDArray[np.float64]  # (21,) photo pixels, relative to the wrist, larger is farther
    joints3d_mm: NDArray[
        np.float64
    ]  # (21, 3) wrist-relative, camera axes; of a hand of the detector's usual size


@dataclass(frozen=True, eq=False)
class DetectorModel:
    """A detector's file, which travels whole: other machines need not see where it lies."""

    place: str
    bundle: bytes
    id: str  # its name in labels, with a hash of its content


class HandDetector:
    """MediaPipe's hand landmarker, ready to look at photos. One per process and thread."""

    def __init__(self, model: str | DetectorModel, max_hands: int = 2, search: Search = "quick") -> None:
        """Load a model.

        Args:
            model: path or URL of `hand_landmarker.task`, or what `read_model` gave.
            max_hands: how many hands a photo shows at most.
            search: `thorough` looks again where the first look finds nothing, at turned and at enlarged parts.

        Raises:
            UserError: the package or the model is missing, or the file is no such model.
        """
        if isinstance(model, str):
            model = read_model(model)
        from mediapipe import Image as MediaPipeImage
        from mediapipe import ImageFormat
        from mediapipe.tasks.python import BaseOptions
        from mediapipe.tasks.python.vision import HandLandmarker, HandLandmarkerOptions

        self._max_hands, self._search = max_hands, search
        # Any of them may be found twice, and must not take the place of another.
        options = HandLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=model.bundle), num_hands=2 * max_hands
        )
        self._image = lambda pixels: MediaPipeImage(image_format=ImageFormat.SRGB, data=pixels)
        # It logs as it starts and at its first photo, not later.
        with quiet_stderr():
            try:
                self._landmarker = HandLandmarker.create_from_options(options)
            except (RuntimeError, ValueError, OSError) as error:
                reason = first_line(error)
                raise UserError(f"'{model.place}' can't be used ({reason}): give {_WHERE_TO_GET}") from None
            # A landmarker that the garbage collector closes waits for ever for a thread that has gone already.
            self._closing = weakref.finalize(self, self._landmarker.close)
            self._closing.atexit = False  # by then no thread starts any more
            self._look(np.zeros((8, 8, 3), np.uint8))

    def close(self) -> None:
        """Free the network now; otherwise it goes with the detector."""
        self._closing()

    def find(
        self, pixels: NDArray[np.uint8], width: int | None = None, height: int | None = None
    ) -> list[FoundHand]:
        """The hands of a photo, the largest first.

        Args:
            pixels: (H, W, 3) RGB, the photo or a scaled-down version of it.
            width: of the photo itself, if `pixels` is not. height: likewise.
        """
        whole, size = pixels, np.array([width or pixels.shape[1], height or pixels.shape[0]], np.float64)
        shrink = min(pixels.shape[:2]) // ENOUGH_PX
        if shrink > 1:
            pixels = np.asarray(Image.fromarray(pixels).reduce(shrink))
        bordered_first = max(pixels.shape[:2]) <= CROP_LIKE_PX
        found = self._look(pixels, bordered_first) or self._look(pixels, not bordered_first)
        is_first_look = bool(found)
        if not found and self._search == "thorough":
            found = self._look_again(whole)
        hands = [_hand(points * [*size, size[0]], *rest) for points, *rest in found]
        kept = distinct([hand.joints2d_px for hand in hands], [hand.detection_score for hand in hands])
        if not is_first_look:  # MediaPipe orders the hands of one look, not those of several
            kept.sort(key=lambda index: -hands[index].detection_score)
        hands = [hands[index] for index in kept[: self._max_hands]]
        return sorted(hands, key=lambda hand: -float(np.prod(hand.box_xyxy[2:] - hand.box_xyxy[:2])))

    def _look_again(self, pixels: NDArray[np.uint8]) -> list[Any]:
        """Return the hands of the first round of views that finds any, as `_look` does."""
        height, width = pixels.shape[:2]
        to_shares = np.array([width, height, width], np.float64)
        for views in search_rounds(width, height):
            found = []
            for view in views:
                seen = view.cut(pixels)
                for shares, joints3d_mm, *side in self._look(seen):
                    points = view.to_photo(shares * [seen.shape[1], seen.shape[0], seen.shape[1]])
                    joints3d_mm = view.turned_back(joints3d_mm)
                    if view.holds(points, width, height) and _is_sure(points[:, :2], joints3d_mm):
                        found.append((points / to_shares, joints3d_mm, *side))
            if found:
                return found
        return []

    def _look(self, pixels: NDArray[np.uint8], bordered: bool = False) -> list[Any]:
        """Of each hand: landmarks (21, 3), joints (21, 3) in mm, its side.

        Landmarks are shares of the photo's width, height and, for depth, width.
        """
        border = round(BORDER * min(pixels.shape[:2])) if bordered else 0
        inner = np.array(pixels.shape[1::-1], np.float64)
        if border:
            pixels = np.pad(pixels, ((border, border), (border, border), (0, 0)), mode="edge")
        outer = np.array(pixels.shape[1::-1], np.float64)
        # Its C++ warns here too, by chance: where memory happens not to lie as it likes.
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
    """MediaPipe's points as an array (21, 3)."""
    return np.array([[point.x, point.y, point.z] for point in points])


_of_process: dict[tuple[str, int, Search], HandDetector] = {}


def detector_of_process(model: DetectorModel, max_hands: int, search: Search) -> HandDetector:
    """The one of this process, loaded when first asked for."""
    key = (model.id, max_hands, search)
    if key not in _of_process:
        _of_process[key] = HandDetector(model, max_hands, search)
    return _of_process[key]


def _hand(
    landmarks_px: NDArray[np.float64], joints3d_mm: NDArray[np.float64], is_right: bool, side_score: float
) -> FoundHand:
    joints2d_px = landmarks_px[:, :2]
    return FoundHand(
        box_xyxy=box_around_joints(joints2d_px),
        is_right=is_right,
        side_score=side_score,
        detection_score=agreement(joints2d_px, joints3d_mm),
        joints2d_px=joints2d_px,
        landmark_depth_px=landmarks_px[:, 2] - landmarks_px[0, 2],
        joints3d_mm=joints3d_mm - joints3d_mm[0],
    )


def check_search(search: str) -> None:
    """Raise `UserError` where `search` is none of `Search`."""
    if search not in get_args(Search):
        raise UserError(f"search is {search!r}, may be {', '.join(get_args(Search))}")


def _is_sure(joints2d_px: NDArray[np.float64], joints3d_mm: NDArray[np.float64]) -> bool:
    is_large = float(np.ptp(joints2d_px, axis=0).max()) >= _AGAIN_MIN_PX
    return is_large and agreement(joints2d_px, joints3d_mm) >= _AGAIN_MIN_SCORE


def agreement(joints2d_px: NDArray[np.floating], joints3d_mm: NDArray[np.floating]) -> float:
    """How well 3D joints (21, 3), camera axes, scaled and moved, lie on 2D joints (21, 2): 1 is exactly, 0 not at all.

    MediaPipe gives no score of a detection. But it answers twice, in 2D and in 3D, and where it is unsure the
    two differ. `1 / (1 + (e / 0.05)^2)`, where e is the RMS distance over the diagonal of the joints' 2D box.
    """
    flat = joints3d_mm[:, :2] - joints3d_mm[:, :2].mean(0)
    there = joints2d_px - joints2d_px.mean(0)
    scale = (flat * there).sum() / max(float((flat * flat).sum()), 1e-12)
    misfit = np.sqrt(((there - scale * flat) ** 2).sum(1).mean())
    diagonal = max(float(np.linalg.norm(np.ptp(joints2d_px, axis=0))), 1e-12)
    return float(1 / (1 + (misfit / diagonal / _HALF_SCORE_MISFIT) ** 2))


def model_file(named: str | None) -> str | None:
    """Where the model is that a user named: a path or URL, or `mediapipe`, or nothing."""
    if named not in (None, "mediapipe"):
        return named
    return MODEL_NAME if Path(MODEL_NAME).exists() else None


def read_model(named: str | None) -> DetectorModel:
    """The model that a user named.

    Raises:
        UserError: MediaPipe is not installed, there is no such file, or it is another kind of file.
    """
    if find_spec("mediapipe") is None:
        raise UserError("hands are detected by MediaPipe: pip install 'amvur-annotator[detect]'")
    place = model_file(named)
    if place is None:
        raise UserError(f"there is no {MODEL_NAME} in this folder: give the path or URL of {_WHERE_TO_GET}")
    try:
        bundle = read_whole(place)
    except OSError as error:
        raise UserError(f"'{place}' can't be read ({error.strerror}): give {_WHERE_TO_GET}") from None
    if bundle is None:
        raise UserError(f"there is no '{place}': give {_WHERE_TO_GET}")
    try:
        names = zipfile.ZipFile(io.BytesIO(bundle)).namelist()
    except zipfile.BadZipFile:
        names = []
    if "hand_landmarks_detector.tflite" not in names:
        raise UserError(f"'{place}' is not a hand detector: give {_WHERE_TO_GET}")
    return DetectorModel(place, bundle, f"hand_landmarker-{hashlib.sha256(bundle).hexdigest()[:12]}")
