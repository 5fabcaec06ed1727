"""One shape per track, or per person: the inverse-variance mean of betas and of lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.labels.hand_length import mean_length

Floats = NDArray[np.floating]

#: The column of a list with the name of a hand's owner.
PERSON = "person"


class PersonShape(NamedTuple):
    """Shape and length shared by a person's tracks."""

    betas: Floats  # (10,)
    length_mm: float | None  # None where labels have no lengths
    length_std_mm: float


def joint_variance(joints3d_std_mm: Floats) -> Floats:
    """Return the mean variance (n,) of the joints of hands (n, 21, 3) but their wrists."""
    return np.maximum(np.square(joints3d_std_mm[:, 1:], dtype=np.float64).mean((1, 2)), 1e-6)


def one_shape(betas: Floats, variance: Floats) -> Floats:
    """Return the mean (10,) of betas (n, 10), each weighing by the inverse of its hand's variance (n,).

    Labels hold no std of betas. Their variance is taken as proportional to that of the joints, whatever the factor.
    """
    mean: Floats = np.average(betas, axis=0, weights=1 / variance)
    return mean


def shapes_of_people(
    columns: dict[str, Any], tracks: Sequence[NDArray[np.int64]], people: Sequence[Any]
) -> list[PersonShape | None]:
    """Return the shape of each track, shared by all tracks of a person; None where its person is None.

    Args:
        columns: of a sequence's hands.
        tracks: rows of each track's hands that are of its side.
        people: the owner of each track.
    """
    shapes = {
        person: _shape_of(
            columns, [own for own, owner in zip(tracks, people, strict=True) if owner == person]
        )
        for person in set(people) - {None}
    }
    return [shapes.get(person) for person in people]


def _shape_of(columns: dict[str, Any], tracks: list[NDArray[np.int64]]) -> PersonShape:
    rows = np.concatenate(tracks)
    betas = one_shape(columns["betas"][rows], joint_variance(columns["joints3d_std_mm"][rows]))
    length_mm, std_mm = columns["hand_length_mm"], columns["hand_length_std_mm"]
    if length_mm is None or std_mm is None:
        return PersonShape(betas, None, 0.0)
    # Errors of a track's frames are alike, those of two hands are not.
    each = [mean_length(length_mm[own], std_mm[own])[0] for own in tracks]
    stds = [0.0 if (std_mm[own] == 0).any() else float(std_mm[own].mean()) for own in tracks]
    return PersonShape(betas, *mean_length(np.array(each), np.array(stds)))


def people_of(
    person: Sequence[Any] | None, tracks: Sequence[NDArray[np.int64]], one_person: bool
) -> list[Any]:
    """Return the owner of each track: the most frequent name of its hands, else the only person, or None.

    Args:
        person: (n,) a list's column of that name; None without it.
        tracks: rows of each track's hands.
        one_person: all hands belong to one person.
    """
    found: list[Any] = []
    for own in tracks:
        names = [] if person is None else [person[row] for row in own if person[row] not in (None, "")]
        found.append(
            max(sorted(set(names), key=str), key=names.count) if names else ("",) if one_person else None
        )
    return found
