"""Calibration of the std of fits: power laws, fitted on drawn hands, and the shipped file with them.

`python -m annotator.fitting.calibration` fits the laws again and writes the file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from annotator.config import FitConfig, from_dict, to_dict
from annotator.quality.calibration import Calibration
from annotator.quality.uncertainty import fit_axis_laws, fit_mean_error, fit_power_law

PATH = Path(__file__).with_name("calibration.json")

#: Number of hands on which the shipped laws are fitted, and their seed.
COUNT, SEED = 1000, 20


@dataclass(frozen=True)
class FitCalibration:
    """Laws for fits to landmarks with and without depth; `fitted_on` of each is empty until they are measured.

    Lengths are millimetres; 2D is in units of 1/90 palm, independent of its size in the photo.
    """

    with_depth: Calibration = field(default_factory=Calibration)
    without_depth: Calibration = field(default_factory=Calibration)


@cache
def shipped_calibration(hand_id: str, config: FitConfig) -> FitCalibration:
    """Return the shipped laws; for another hand model or configuration, marked as not calibrated."""
    stored = json.loads(PATH.read_text(encoding="utf-8"))
    laws = from_dict(FitCalibration, stored["calibration"], str(PATH))
    if (stored["hand"], stored["config"]) == (hand_id, to_dict(config)):
        return laws
    return FitCalibration(*(_not_fitted(part) for part in (laws.with_depth, laws.without_depth)))


def _not_fitted(laws: Calibration) -> Calibration:
    """Return the laws of another hand or configuration: better than no laws, but not measured."""
    return replace(laws, fitted_on="")


def calibrate_fits(count: int = COUNT, seed: int = SEED, config: FitConfig = FitConfig()) -> dict[str, Any]:
    """Fit the laws on drawn hands and return the content of the shipped file."""
    from annotator.fitting.drawn import drawn_hands
    from annotator.fitting.hand_fit import HandFitter

    fitter = HandFitter(config=config, calibration=FitCalibration())
    drawn = drawn_hands(fitter.hand, count, np.random.default_rng(seed))
    parts = {}
    for name, landmarks in (
        ("with_depth", drawn.landmarks),
        ("without_depth", drawn.landmarks.without_depth()),
    ):
        fit = fitter.fit(landmarks)
        units = fit.units_per_px[:, None, None]
        joints_error_mm = fit.joints3d_mm - drawn.joints3d_mm
        joints3d = fit_axis_laws(fit.joints3d_std_mm, joints_error_mm)
        parts[name] = Calibration(
            vertices=fit_axis_laws(fit.vertices_std_mm, fit.vertices_mm - drawn.vertices_mm),
            joints3d=joints3d,
            joints2d=fit_power_law(
                fit.joints2d_std_px * units, (fit.joints2d_px - drawn.joints3d_mm[..., :2]) * units
            ),
            joint_error=fit_mean_error(
                np.linalg.norm(joints3d(fit.joints3d_std_mm[:, 1:]), axis=-1).mean(1),
                np.linalg.norm(joints_error_mm[:, 1:], axis=-1).mean(1),
            ),
            fitted_on=f"drawn hands, {count}, with a detector's errors: joints3d, vertices, joints2d",
        )
    return {
        "hand": fitter.hand.id,
        "config": to_dict(config),
        "calibration": asdict(FitCalibration(**parts)),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(calibrate_fits(), indent=1) + "\n", encoding="utf-8")
