"""MediaPipe's hand landmarker as it is distributed: a zip, `hand_landmarker.task`, with one network per step."""

from __future__ import annotations

import io
import zipfile

from annotator.errors import UserError
from annotator.storage.files import read_if_exists

#: File name under which MediaPipe distributes the bundle.
MODEL_NAME = "hand_landmarker.task"

#: The network in the bundle that gives landmarks; the other one detects palms.
MEMBER = "hand_landmarks_detector.tflite"

WHERE_TO_GET = "MediaPipe's hand_landmarker.task, from https://ai.google.dev/edge/mediapipe/solutions/vision/hand_landmarker"


def read_bundle(uri: str) -> bytes:
    """Return the content of a bundle, a path or URL.

    Raises:
        UserError: the file is missing or unreadable, or holds no landmark network.
    """
    try:
        bundle = read_if_exists(uri)
    except OSError as error:
        raise UserError(f"'{uri}' can't be read ({error.strerror}): give {WHERE_TO_GET}") from None
    if bundle is None:
        raise UserError(f"there is no '{uri}': give {WHERE_TO_GET}")
    try:
        names = zipfile.ZipFile(io.BytesIO(bundle)).namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        names = []
    if MEMBER not in names:
        raise no_landmark_network(uri)
    return bundle


def no_landmark_network(uri: str) -> UserError:
    """Return the error for a file without MediaPipe's hand landmark network."""
    return UserError(f"'{uri}' does not hold MediaPipe's hand landmark network: give {WHERE_TO_GET}")
