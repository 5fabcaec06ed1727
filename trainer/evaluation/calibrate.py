"""Make a network's uncertainties measure its errors, on photos it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from annotator.errors import UserError
from annotator.quality.calibration import AxisLaws, Calibration, PowerLaw
from annotator.quality.uncertainty import fit_axis_laws, fit_mean_error, fit_power_law
from trainer.evaluation.measurements import Floats, Measured

Law = TypeVar("Law", AxisLaws, PowerLaw)

#: Below this a calibration would be of these photos alone. Errors of one photo are alike, so that photos count, not
#: joints: where all of a photo's errors are one, 200 photos leave coverage uncertain by 2 points, 1,000 by 1.
LEAST_PHOTOS = 20


def calibrate(measured: Measured, source: str) -> Calibration:
    """Fit power laws to joints, vertices and 2D joints, and the mean error of a hand's joints to their std.

    `source` names the photos, for the record. A kind of which no photo has the truth keeps the network's own std, and
    `fitted_on` names the others: photos with 2D joints alone leave all of 3D as it is, depth included.

    Args:
        measured: held-out photos, measured without a calibration.
        source: e.g. the data set's name.

    Raises:
        UserError: too few photos, none with a target, or errors that are all zero.
    """
    if measured.calibration != Calibration():
        raise ValueError("calibrate from the network's own stds: measure without a calibration")
    check_enough(len(measured), source)
    std_mm, error_mm = measured["joints3d_std_mm"], measured["joints3d_error_mm"]
    joints3d = _fit(fit_axis_laws, "joints3d", source, std_mm, error_mm)
    vertices = _fit(fit_axis_laws, "vertices", source, *measured.vertex_pairs())
    joints2d = _fit(fit_power_law, "joints2d", source, measured["joints2d_stds"], measured["joints2d_errors"])
    found = {"joints3d": joints3d, "vertices": vertices, "joints2d": joints2d}
    fitted = [name for name, law in found.items() if law]
    if not fitted:
        raise UserError(f"'{source}' has no photo with 3D joints, vertices or 2D joints to calibrate on")
    calibration = Calibration(
        vertices or AxisLaws(),
        joints3d or AxisLaws(),
        joints2d or PowerLaw(),
        fitted_on=f"{source}, {len(measured)} photos: {', '.join(fitted)}",
    )
    return replace(calibration, joint_error=_fit_joint_error(joints3d, measured)) if joints3d else calibration


def check_enough(photos: int, source: str) -> None:
    """Ask before predicting.

    Raises:
        UserError: a calibration on so few would be of these photos alone.
    """
    if photos < LEAST_PHOTOS:
        raise UserError(
            f"'{source}' has {photos} photos, too few to calibrate on: give {LEAST_PHOTOS} or more, better 1,000"
        )


def _fit(
    fit: Callable[[Floats, Floats], Law], kind: str, source: str, std: Floats, error: Floats
) -> Law | None:
    """Fit where any error is known. The wrist, without a std, and unknown joints (NaN) are left out by `fit`."""
    if np.isnan(error).all():
        return None
    try:
        return fit(std, error)
    except ValueError as problem:
        raise UserError(f"can't calibrate {kind} on '{source}': {problem}") from None


def _fit_joint_error(laws: AxisLaws, measured: Measured) -> PowerLaw:
    error_mm = np.linalg.norm(measured["joints3d_error_mm"][:, 1:], axis=-1).mean(1)
    std_mm = np.linalg.norm(laws(measured["joints3d_std_mm"][:, 1:]), axis=-1).mean(1)
    known = ~np.isnan(error_mm)
    return fit_mean_error(std_mm[known], error_mm[known])
