"""Relate the hands of one photo: one size for a person's two hands, and the depth of their contact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from annotator.hand.penetration import penetration_mm
from annotator.labels.hand_length import CHANGED, mean_length, resize


class LabelledRows(Protocol):
    """Rows of photos, and label columns of their hands, such as those of a shard."""

    rows: list[dict[str, Any]]
    hand_rows: list[int]  # the row of each hand
    hands: dict[str, Any]  # label columns over hands


def relate_two_hands(shard: LabelledRows, faces: NDArray[np.integer], tie_sizes: bool = True) -> None:
    """Tie the sizes of right and left hands, and fill `penetration_mm` if there are meshes, in place.

    Args:
        shard: with all labelled hands of its photos.
        faces: triangles (F, 3) of the hand model.
        tie_sizes: whether a photo's only right and only left hand are of one person, and so equally long.
    """
    photos = [(row["image_uri"], row["frame_index"], row["duplicate"]) for row in _rows_of_hands(shard)]
    several = _together(photos)
    if several and tie_sizes:
        shard.hands = _writable(shard.hands)  # arrays in shared memory are not
        for hands in several:
            tie(shard.hands, hands)
    if "vertices_mm" in shard.hands:
        fill_penetration(shard.rows, shard.hand_rows, photos, shard.hands, faces)


def _rows_of_hands(shard: LabelledRows) -> list[dict[str, Any]]:
    return [shard.rows[row] for row in shard.hand_rows]


def fill_penetration(
    rows: list[dict[str, Any]],
    hand_rows: Sequence[int],
    photos: Sequence[Hashable],
    columns: dict[str, Any],
    faces: NDArray[np.integer],
) -> None:
    """Fill `penetration_mm` of the rows of hands whose photo shows another one, in place.

    Args:
        rows: of a label file.
        hand_rows: (n) the row of each hand. photos: (n) its photo.
        columns: the hands' label columns.
        faces: triangles (F, 3) of the hand model.
    """
    for hands in _together(photos):
        placed = {hand: columns["vertices_mm"][hand] + columns["camera"]["cam_t_mm"][hand] for hand in hands}
        finite = [hand for hand in hands if np.isfinite(placed[hand]).all()]
        for pair in combinations(finite, 2):
            depth = penetration_mm(placed[pair[0]], placed[pair[1]], faces)
            for of_hand in (rows[hand_rows[hand]] for hand in pair):
                of_hand["penetration_mm"] = max(depth, of_hand.get("penetration_mm") or 0.0)


def _together(photos: Sequence[Hashable]) -> list[list[int]]:
    """Return the hands of each photo with several, by their numbers."""
    hands: dict[Hashable, list[int]] = defaultdict(list)
    for hand, photo in enumerate(photos):
        hands[photo].append(hand)
    return [several for several in hands.values() if len(several) > 1]


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
    if (stds == 0).all():
        return
    length_mm, std_mm = mean_length(lengths, stds)
    for hand in hands:
        resize(columns, hand, length_mm, std_mm)
