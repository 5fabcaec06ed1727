"""Fit the power laws of `fit`'s std on synthetic hands: `python tools/calibrate_fits.py`.

The result replaces `annotator/fitting/calibration.json`, or goes to the path given as `--out`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from annotator.config import FitConfig, to_dict
from annotator.fitting.calibration import PATH, FitCalibration
from annotator.fitting.hand_fit import HandFitter
from annotator.quality.calibration import Calibration
from annotator.quality.uncertainty import fit_axis_laws, fit_mean_error, fit_power_law
from trainer.synth.landmarks import simulated_detections

#: Number of hands on which the shipped laws are fitted, and their seed.
COUNT, SEED = 1000, 20


def calibrate_fits(count: int = COUNT, seed: int = SEED, config: FitConfig = FitConfig()) -> dict[str, Any]:
    """Fit the laws on synthetic hands and return the content of the shipped file."""
    fitter = HandFitter(config=config, calibration=FitCalibration())
    drawn = simulated_detections(fitter.hand, count, np.random.default_rng(seed))
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


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=PATH, help="JSON file of the laws; default: the shipped one"
    )
    out: Path = parser.parse_args().out
    out.write_text(json.dumps(calibrate_fits(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
