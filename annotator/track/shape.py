"""One shape per track: the inverse-variance mean of betas."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def one_shape(betas: Floats, variance: Floats) -> Floats:
    """Return the mean (10,) of betas (n, 10), each weighing by the inverse of its hand's variance (n,).

    Labels hold no std of betas. Their variance is taken as proportional to that of the joints, whatever the factor.
    """
    mean: Floats = np.average(betas, axis=0, weights=1 / variance)
    return mean
