"""Calibration: laws from a network's std to a std that matches its errors, and the data behind them.

A checkpoint has one in its header, and every label file has a copy in its metadata, both in the form of `asdict`.
`annotator/quality/uncertainty.py` fits one map, `trainer/evaluation/fit_calibration.py` all of them.
`predicted_columns.py` applies them to labels, `predictor.py` to samples. The network's std in millimetres comes from
`annotator/model/amvur.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.config import from_dict
from annotator.errors import UserError

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class PowerLaw:
    """The map `scale * value ** exponent`."""

    scale: float = 1.0
    exponent: float = 1.0

    def __call__(self, value: Floats) -> Floats:
        """Map an array of any shape; the identity returns the array itself."""
        if self == PowerLaw():
            return value
        return self.scale * value**self.exponent


@dataclass(frozen=True)
class AxisLaws:
    """Power laws for the std of 3D points in crop axes, millimetres.

    x and y share a law, because a hand may be rotated by any angle in the image plane. z is the depth along the
    crop's ray, on which a photo gives far less information.
    """

    plane: PowerLaw = field(default_factory=PowerLaw)
    depth: PowerLaw = field(default_factory=PowerLaw)

    def __call__(self, std_mm: Floats) -> Floats:
        """Map the std (..., 3) of x, y and z; the identity returns the array itself."""
        if self.plane == self.depth:
            return self.plane(std_mm)
        return np.concatenate([self.plane(std_mm[..., :2]), self.depth(std_mm[..., 2:])], -1)


#: The mean length of a 3D Gaussian error divided by the length of its std vector, with equal std on all axes.
GAUSSIAN_MEAN_ERROR = math.sqrt(8 / (3 * math.pi))

#: The caveat for calibration on 2D joints alone.
UNCALIBRATED_3D = (
    "3D std is the network's own; if training had no 3D targets, std along depth is nearly a constant of the prior and "
    "does not rank errors: do not filter by it"
)


@dataclass(frozen=True)
class Calibration:
    """Maps from the network's std to a std that matches its errors; a kind without a fit keeps the identity."""

    vertices: AxisLaws = field(default_factory=AxisLaws)
    joints3d: AxisLaws = field(default_factory=AxisLaws)
    joints2d: PowerLaw = field(
        default_factory=PowerLaw
    )  # crop half-sides; x and y are both in the image plane
    #: From a hand's calibrated `joint_std_mm` to the expected mean error of its joints, without the wrist, millimetres.
    #: Errors have heavier tails than a Gaussian, especially where std is large, so coverage does not give this mean.
    joint_error: PowerLaw = field(default_factory=lambda: PowerLaw(GAUSSIAN_MEAN_ERROR, 1.0))
    #: The data set, its size and the kinds that were fitted; empty before any fit.
    fitted_on: str = ""

    @property
    def measures_3d(self) -> bool:
        """Whether the std of 3D joints was fitted to errors. False if the data had only 2D joints, or no fit ran."""
        return bool(self.fitted_on) and self.joints3d != AxisLaws()

    def table(self) -> list[tuple[str, str]]:
        """Return a row per fitted map: its name and formula."""
        laws = {
            "vertices, image plane": self.vertices.plane,
            "vertices, depth": self.vertices.depth,
            "3D joints, image plane": self.joints3d.plane,
            "3D joints, depth": self.joints3d.depth,
            "2D joints": self.joints2d,
        }
        rows = [
            (name, f"std = {law.scale:.4g} x std ^ {law.exponent:.3f}")
            for name, law in laws.items()
            if law != PowerLaw()
        ]
        if self.measures_3d:
            law = self.joint_error
            rows.append(("3D joints, mean error", f"error = {law.scale:.4g} x std ^ {law.exponent:.3f}"))
        return rows


def read_calibration(values: Mapping[str, Any], where: str) -> Calibration:
    """Build a calibration from a checkpoint's header or a label file's metadata; `where` names it in errors.

    Older files have one law for all axes (`{"scale": ..., "exponent": ...}`) and no `joint_error`. They keep their
    meaning: that law on every axis, and the mean error of a Gaussian. So no new version is needed.

    Raises:
        UserError: an unknown key, or a value of the wrong kind.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected keys and values, found {values!r}")
    widened = dict(values)
    for kind in ("vertices", "joints3d"):
        law = widened.get(kind)
        if isinstance(law, Mapping) and "plane" not in law and "depth" not in law:
            widened[kind] = {"plane": law, "depth": law}
    return from_dict(Calibration, widened, where)
