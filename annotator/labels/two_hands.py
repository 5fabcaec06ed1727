"""What the hands of one photo have in common: the size of a person's two hands, and how deep they touch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.hand.penetration import penetration_mm
from annotator.job.shard import Shard
from annotator.labels.metric import CHANGED, resize

#: The least std of a predicted length, millimetres: a given one has 0.
_LEAST_STD_MM = 1e-3


def join_two_hands(shard: Shard, faces: NDArray[np.integer], tie_sizes: bool = True) -> None:
    """Tie the sizes of right and left hands, and fill `penetration_mm`, in place.

    Args:
        shard: with all labelled hands of its photos.
        faces: triangles (F, 3) of the hand model.
        tie_sizes: whether a photo's only right and only left hand are of one person, and so equally long.
    """
    photos = _photos(shard)
    if photos and tie_sizes:
        shard.hands = _writable(shard.hands)  # arrays in shared memory are not
        for hands in photos:
            tie(shard.hands, hands)
    for hands in photos:
        placed = {
            hand: shard.hands["vertices_mm"][hand] + shard.hands["camera"]["cam_t_mm"][hand] for hand in hands
        }
        depths = {(a, b): penetration_mm(placed[a], placed[b], faces) for a, b in combinations(hands, 2)}
        for hand in hands:
            deepest = max(depth for pair, depth in depths.items() if hand in pair)
            shard.rows[shard.hand_rows[hand]]["penetration_mm"] = deepest


def _photos(shard: Shard) -> list[list[int]]:
    """Return the hands of each photo with several, by their numbers among the shard's hands."""
    photos: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for hand, row in enumerate(shard.hand_rows):
        of_row = shard.rows[row]
        photos[of_row["image_uri"], of_row["frame_index"], of_row["duplicate"]].append(hand)
    return [hands for hands in photos.values() if len(hands) > 1]


def _writable(columns: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _writable(values)
        if isinstance(values, dict)
        else values.copy()
        if name in CHANGED and values is not None
        else values
        for name, values in columns.items()
    }


def tie(columns: dict[str, Any], hands: Sequence[int]) -> None:
    """Give one right and one left hand the mean of their lengths by inverse variance, in place.

    A given length counts alone. Two given lengths, and any other hands, stay as they are.
    """
    is_right = columns["is_right"][list(hands)]
    if len(hands) != 2 or is_right[0] == is_right[1]:
        return
    lengths = np.asarray(columns["hand_length_mm"][list(hands)], np.float64)
    stds = np.asarray(columns["hand_length_std_mm"][list(hands)], np.float64)
    given = stds == 0
    if given.all():
        return
    weights = given.astype(float) if given.any() else 1 / np.maximum(stds, _LEAST_STD_MM) ** 2
    length_mm = float((weights * lengths).sum() / weights.sum())
    std_mm = 0.0 if given.any() else float(weights.sum() ** -0.5)
    for hand in hands:
        resize(columns, hand, length_mm, std_mm)
