"""Remove duplicates of a hand that was detected several times, in one view or in overlapping ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

#: Two detections are one hand if their landmarks differ by less than this share of the hand's size on average. Of 40
#: pairs of detections of one hand, 38 differ by less than 0.24; two touching hands, one badly visible, by 0.35.
SAME_HAND = 0.3

#: Landmarks in the order of reversed fingers: the thumb is treated as the little finger, and so on.
_FINGERS_REVERSED = [0, *(4 * finger + joint for finger in (4, 3, 2, 1, 0) for joint in (1, 2, 3, 4))]


def distinct(joints2d_px: Sequence[Floats], scores: Sequence[float]) -> list[int]:
    """Return the hands to keep: of several detections of one hand, the one with the highest score.

    Boxes are not compared, since boxes of two touching hands overlap as much as those of one hand detected twice.

    Args:
        joints2d_px: landmarks (21, 2) of each hand, photo pixels, FreiHAND's order.
        scores: of each hand.

    Returns:
        Indices in ascending order.
    """
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
        if all(landmark_distance(joints2d_px[index], joints2d_px[other]) >= SAME_HAND for other in kept):
            kept.append(index)
    return sorted(kept)


def landmark_distance(a: Floats, b: Floats) -> float:
    """Return the mean distance of corresponding landmarks (21, 2) over the larger hand's size.

    Fingers also correspond in reverse order, and the smaller distance counts: the wrong side often reverses them.
    """
    orders = (slice(None), _FINGERS_REVERSED)
    distance_px = min(float(np.linalg.norm(a - b[order], axis=1).mean()) for order in orders)
    return distance_px / max(hand_size(a), hand_size(b), 1e-9)


def hand_size(joints2d_px: Floats) -> float:
    """Return the side of the square with the area over which landmarks (N, 2) spread, independent of rotation.

    Narrow hands, such as two pressed together and seen from the thumbs, are small by this measure and stay two hands.
    """
    return float((12**2 * max(np.linalg.det(np.cov(joints2d_px.T, bias=True)), 0)) ** 0.25)
