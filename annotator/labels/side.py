"""Sides of hands in labels, as probabilities of a right hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def right_score(is_right: bool, side_score: float | None) -> float:
    """Return the probability of a right hand; without a side score, the side was given."""
    score = 1.0 if side_score is None else side_score
    return score if is_right else 1 - score


def right_scores(is_right: NDArray[np.bool_], side_score: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the probability (n,) of a right hand; where the side score is NaN, the side was given."""
    score = np.where(np.isnan(side_score), 1.0, side_score)
    scores: NDArray[np.floating] = np.where(is_right, score, 1 - score)
    return scores
