"""Calibration of the std of fits: power laws in a shipped file, which `tools/calibrate_fits.py` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from annotator.config import FitConfig, from_dict, to_dict
from annotator.quality.calibration import Calibration

PATH = Path(__file__).with_name("calibration.json")


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
