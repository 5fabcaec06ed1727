"""Fit a calibration that turns predicted std into the size of errors, on held-out photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from annotator.errors import UserError
from annotator.quality.calibration import AxisLaws, Calibration, PowerLaw
from annotator.quality.uncertainty import fit_axis_laws, fit_mean_error, fit_power_law
from trainer.evaluation.measurements import Floats, PhotoErrors

Law = TypeVar("Law", AxisLaws, PowerLaw)

#: With fewer photos a calibration would only fit these. Errors within a photo are correlated, so photos count, not
#: joints: with full correlation, 200 photos leave coverage uncertain by 2 points, 1,000 by 1.
MIN_PHOTOS = 20


def fit_calibration(errors: PhotoErrors, source: str) -> Calibration:
    """Fit power laws to joints, vertices and 2D joints, and the mean error of a hand's joints to their std.

    A kind without truth in any photo keeps the network's own std; `fitted_on` names the fitted kinds. Photos with 2D
    joints alone leave all of 3D unchanged, depth included.

    Args:
        errors: of held-out photos, measured without a calibration.
        source: name of the photos for the record, e.g. of the data set.

    Raises:
        UserError: too few photos, none with a target, or errors that are all zero.
    """
    if errors.calibration != Calibration():
        raise ValueError("calibrate from the network's own stds: measure without a calibration")
    check_enough(len(errors), source)
    std_mm, error_mm = errors["joints3d_std_mm"], errors["joints3d_error_mm"]
    joints3d = _fit(fit_axis_laws, "joints3d", source, std_mm, error_mm)
    vertices = _fit(fit_axis_laws, "vertices", source, *errors.vertex_pairs())
    joints2d = _fit(fit_power_law, "joints2d", source, errors["joints2d_stds"], errors["joints2d_errors"])
    found = {"joints3d": joints3d, "vertices": vertices, "joints2d": joints2d}
    fitted = [name for name, law in found.items() if law]
    if not fitted:
        raise UserError(f"'{source}' has no photo with 3D joints, vertices or 2D joints to calibrate on")
    calibration = Calibration(
        vertices or AxisLaws(),
        joints3d or AxisLaws(),
        joints2d or PowerLaw(),
        fitted_on=f"{source}, {len(errors)} photos: {', '.join(fitted)}",
    )
    return replace(calibration, joint_error=_fit_joint_error(joints3d, errors)) if joints3d else calibration


def check_enough(photos: int, source: str) -> None:
    """Check the number of photos before predicting.

    Raises:
        UserError: there are fewer than `MIN_PHOTOS`.
    """
    if photos < MIN_PHOTOS:
        raise UserError(
            f"'{source}' has {photos} photos, too few to calibrate on: give {MIN_PHOTOS} or more, better 1,000"
        )


def _fit(
    fit: Callable[[Floats, Floats], Law], kind: str, source: str, std: Floats, error: Floats
) -> Law | None:
    """Fit if any error is known. `fit` skips the wrist, which has no std, and unknown joints (NaN)."""
    if np.isnan(error).all():
        return None
    try:
        return fit(std, error)
    except ValueError as problem:
        raise UserError(f"can't calibrate {kind} on '{source}': {problem}") from None


def _fit_joint_error(laws: AxisLaws, errors: PhotoErrors) -> PowerLaw:
    error_mm = np.linalg.norm(errors["joints3d_error_mm"][:, 1:], axis=-1).mean(1)
    std_mm = np.linalg.norm(laws(errors["joints3d_std_mm"][:, 1:]), axis=-1).mean(1)
    known = ~np.isnan(error_mm)
    return fit_mean_error(std_mm[known], error_mm[known])
