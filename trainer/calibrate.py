"""Make a network's uncertainties measure its errors, on photos it was not trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.model.checkpoint import Calibration, PowerLaw
from annotator.uncertainty import fit_power_law
from trainer.measured import Measured

#: Below this a calibration would be of these photos alone. Errors of one photo are alike, so that photos count, not
#: joints: where all of a photo's errors are one, 200 photos leave coverage uncertain by 2 points, 1,000 by 1.
LEAST_PHOTOS = 20


def calibrate(measured: Measured, source: str) -> Calibration:
    """Fit a power law each to joints, vertices and 2D joints; `source` names the photos, for the record.

    What no photo knows the truth of stays as the network says it, and `fitted_on` names what was fitted.

    Args:
        measured: held-out photos, measured without a calibration.
        source: e.g. the data set's name.

    Raises:
        UserError: too few photos, none with a target, or errors that are all zero.
    """
    if measured.calibration != Calibration():
        raise ValueError("calibrate from the network's own stds: measure without a calibration")
    check_enough(len(measured), source)
    pairs = {
        "joints3d": (measured["joints3d_std_mm"], measured["joints3d_error_mm"]),
        "vertices": measured.vertex_pairs(),
        "joints2d": (measured["joints2d_stds"], measured["joints2d_errors"]),
    }
    fitted = {name: _fit(source, name, *pair) for name, pair in pairs.items() if _known(pair[1])}
    if not fitted:
        raise UserError(f"'{source}' has no photo with 3D joints, vertices or 2D joints to calibrate on")
    return Calibration(**fitted, fitted_on=f"{source}, {len(measured)} photos: {', '.join(fitted)}")


def check_enough(photos: int, source: str) -> None:
    """Ask before predicting.

    Raises:
        UserError: a calibration on so few would be of these photos alone.
    """
    if photos < LEAST_PHOTOS:
        raise UserError(
            f"'{source}' has {photos} photos, too few to calibrate on: give {LEAST_PHOTOS} or more, better 1,000"
        )


def _known(error: NDArray[np.floating]) -> bool:
    return bool((~np.isnan(error)).any())


def _fit(source: str, name: str, std: NDArray[np.floating], error: NDArray[np.floating]) -> PowerLaw:
    try:
        # The wrist has no std and no error; unknown joints are NaN. Both are left out.
        return fit_power_law(std, error)
    except ValueError as problem:
        raise UserError(f"can't calibrate {name} on '{source}': {problem}") from None
