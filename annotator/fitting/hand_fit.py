"""Fit a parametric hand to image landmarks: the entry point of this package.

fit = HandFitter().fit(Landmarks(joints2d_px, depth_px, is_right))
fit.vertices_mm, fit.joints3d_mm, fit.pose, fit.betas
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from annotator import coordinates
from annotator.config import FitConfig
from annotator.fitting.calibration import FitCalibration, shipped_calibration
from annotator.fitting.chain import HandParameters, JointChain
from annotator.fitting.landmarks import Landmarks
from annotator.fitting.laplace import Laplace, inflation
from annotator.fitting.objective import FitObjective, Target
from annotator.fitting.solver import Solution, solve
from annotator.fitting.start import from_palm, from_views, has_palm_depth
from annotator.hand import HandModel, load_hand
from annotator.hand.layer import HandLayer
from annotator.hand.model import FREIHAND_FROM_MANO
from annotator.rotations import rotmat_to_rotvec, rotvec_to_rotmat

Floats = NDArray[np.float32]

#: Hands per batch: 256 take 20 MB, and more are not faster.
BATCH = 256

#: Steps from each of several starts, before only the best continues.
_TRIAL_STEPS = 6

#: Minimum number of landmarks per hand.
MIN_LANDMARKS = 6


@dataclass(frozen=True)
class Fit:
    """B fitted hands, in the photo's camera axes (x right, y down, z forward), wrist-relative, millimetres.

    `pose`, `coefficients` and `betas` are of a right hand; for a left hand they describe its mirror image (as labels).
    Weak perspective: `joints2d_px = scale_px_per_mm * joints3d_mm[..., :2] + wrist_px`.
    """

    pose: Floats  # (B, 48) absolute axis-angle, the global rotation first, MANO's joint order
    coefficients: Floats  # (B, 45) of the pose, in std of the hand model's pose components
    betas: Floats  # (B, 10)
    vertices_mm: Floats  # (B, V, 3)
    joints3d_mm: Floats  # (B, 21, 3) R V, FreiHAND's order
    joints2d_px: Floats  # (B, 21, 2) photo pixels
    vertices_std_mm: Floats  # (B, V, 3) of each coordinate
    joints3d_std_mm: Floats  # (B, 21, 3) 0 at the wrist
    joints2d_std_px: Floats  # (B, 21, 2)
    scale_px_per_mm: Floats  # (B,)
    wrist_px: Floats  # (B, 2) photo pixels
    units_per_px: Floats  # (B,) of the length unit of the fit: 90 from wrist to middle knuckle
    misfit: Floats  # (B,) RMS of the landmarks' residuals over their tolerances; about 1 is normal

    def __len__(self) -> int:
        return len(self.pose)


class HandFitter:
    """Fit one hand model, on one device. Immutable, so several threads may share it."""

    def __init__(
        self,
        hand: HandModel | None = None,
        config: FitConfig = FitConfig(),
        device: torch.device | str = "cpu",
        calibration: FitCalibration | None = None,
    ) -> None:
        """Prepare the hand model (default: the open hand) for fits.

        `calibration`: of std; default: the shipped one for this hand and configuration.
        """
        self.hand = hand or load_hand("open")
        self.config = config
        self.device = torch.device(device)
        # Single precision would save a quarter of the time, but loses a step's last digits where depth is unknown.
        self._chain = JointChain.of(self.hand, torch.float64, self.device)
        self._objective = FitObjective(self._chain, config)
        self._layer = HandLayer(self.hand).to(self.device)
        self._laplace = Laplace(self.hand, self._chain)
        self.calibration = calibration or shipped_calibration(self.hand.id, config)
        self._moving = torch.from_numpy(self.hand.moving_components()).to(self.device)

    @torch.inference_mode()
    def fit(self, landmarks: Landmarks) -> Fit:
        """Fit each of one or more hands.

        A landmark without depth counts in 2D only. If the palm has no depth, the fit starts from several directions,
        depends on the prior, and is worse.

        Raises:
            ValueError: a hand with fewer than `MIN_LANDMARKS` known landmarks.
        """
        known = np.isfinite(landmarks.joints2d_px).all(-1).sum(-1)
        if (known < MIN_LANDMARKS).any():
            raise ValueError(f"a hand has {known.min()} landmarks, a fit needs at least {MIN_LANDMARKS}")
        parts = [
            self._fit_batch(landmarks[first : first + BATCH]) for first in range(0, len(landmarks), BATCH)
        ]
        names = Fit.__dataclass_fields__
        return Fit(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    @torch.inference_mode()
    def costs(self, landmarks: Landmarks) -> NDArray[np.float64]:
        """Return the cost (B,) of each fit: half of the squared residuals, and of the prior's terms."""
        points = torch.as_tensor(landmarks.as_right_hands(), dtype=torch.float64, device=self.device)
        cost: NDArray[np.float64] = self._solve(Target.of(points, self.config)).cost.cpu().numpy()
        return cost

    @torch.inference_mode()
    def sides(self, landmarks: Landmarks) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Fit both sides; return whether each is a right hand (B,), and its probability (B,).

        The probability is the posterior odds of the two minima; `is_right` of the landmarks is ignored. Without depth
        both sides often fit: the palm of one looks like the back of the other.
        """
        costs = []
        for right in (True, False):
            sided = Landmarks(landmarks.joints2d_px, landmarks.depth_px, np.full(len(landmarks), right))
            costs.append(torch.from_numpy(self.costs(sided)))
        probability = (costs[1] - costs[0]).sigmoid().numpy()
        return probability >= 0.5, probability

    def _fit_batch(self, landmarks: Landmarks) -> Fit:
        points = torch.as_tensor(landmarks.as_right_hands(), dtype=torch.float64, device=self.device)
        target = Target.of(points, self.config)
        return self._result(self._solve(target), target, ~landmarks.is_right)

    def _solve(self, target: Target) -> Solution:
        """Return the best solution of each hand."""
        objective, steps = self._objective, self.config.most_steps
        start = from_palm(self._chain, target)
        flat = (~has_palm_depth(target)).nonzero()[:, 0]
        if len(flat):
            part = target.rows(flat)
            trials = [solve(objective, part, state, _TRIAL_STEPS) for state in from_views(self._chain, part)]
            best = torch.stack([trial.cost for trial in trials]).argmin(0)
            for number, trial in enumerate(trials):
                chosen = (best == number).nonzero()[:, 0]
                start.put(flat[chosen], trial.state.rows(chosen))
        return solve(objective, target, start, steps)

    def _result(self, solution: Solution, target: Target, mirrored: NDArray[np.bool_]) -> Fit:
        hands = solution.state.hands
        posed = self._chain.posed(hands)
        rotvecs = self._in_mano_order(posed.rotvecs)
        rotations = self.rotations(hands)
        vertices, joints = self._layer(rotations.float(), hands.betas.float())
        coefficients = rotvecs.new_zeros(len(rotvecs), 45)
        coefficients[:, self._moving] = hands.coefficients
        scale = solution.state.log_scale.exp() / target.units_per_px
        wrist = solution.state.shift / target.units_per_px[:, None] + target.centre_px
        pose = torch.cat([rotmat_to_rotvec(hands.rotation), rotvecs.flatten(1)], 1)
        misfit, counted = self._misfit(solution, target)
        spread = self._laplace.spread(solution.state, solution.curvature, vertices)
        wider, has_depth = inflation(misfit, counted), has_palm_depth(target)
        unit = torch.ones_like(wider)
        columns: dict[str, Any] = {
            "pose": pose,
            "coefficients": coefficients,
            "betas": hands.betas,
            "vertices_mm": vertices,
            "joints3d_mm": joints,
            "joints2d_px": scale[:, None, None] * joints[..., :2] + wrist[:, None],
            "vertices_std_mm": self._calibrated("vertices", spread.vertices_mm, wider, unit, has_depth),
            "joints3d_std_mm": self._calibrated("joints3d", spread.joints3d_mm, wider, unit, has_depth),
            "joints2d_std_px": self._calibrated(
                "joints2d", spread.joints2d, wider, 1 / target.units_per_px, has_depth
            ),
            "scale_px_per_mm": scale,
            "wrist_px": wrist,
            "units_per_px": target.units_per_px,
            "misfit": misfit,
        }
        arrays = {name: values.float().cpu().numpy() for name, values in columns.items()}
        for name in ("vertices_mm", "joints3d_mm", "joints2d_px", "wrist_px"):
            sides = mirrored.reshape(-1, *(1,) * (arrays[name].ndim - 1))
            arrays[name] = np.where(sides, coordinates.mirror_points(arrays[name]), arrays[name])
        return Fit(**arrays)

    def rotations(self, hands: HandParameters) -> Tensor:
        """Return rotation matrices (B, 16, 3, 3) of fitted hands, as input for `HandLayer`."""
        fingers = self._in_mano_order(self._chain.posed(hands).rotvecs)
        return torch.cat([hands.rotation[:, None], rotvec_to_rotmat(fingers)], 1)

    def _in_mano_order(self, rotvecs: Tensor) -> Tensor:
        """Reorder axis-angle by finger and joint (B, 5, 3, 3) to MANO's order (B, 15, 3)."""
        order = torch.tensor(FREIHAND_FROM_MANO[1:], device=self.device).view(5, 4)[:, :3] - 1
        return rotvecs.flatten(1, 2)[:, order.flatten().argsort()]

    def _calibrated(self, name: str, std: Tensor, wider: Tensor, unit: Tensor, has_depth: Tensor) -> Tensor:
        """Return the std (B, N, C) of one kind after inflation and calibration, times a unit (B,)."""
        std = std * wider[:, None, None]
        laws = [getattr(part, name) for part in (self.calibration.with_depth, self.calibration.without_depth)]
        deep, flat = (torch.as_tensor(law(std.cpu().numpy())).to(std) for law in laws)
        return torch.where(has_depth[:, None, None], deep, flat) * unit[:, None, None]

    def _misfit(self, solution: Solution, target: Target) -> tuple[Tensor, Tensor]:
        """Return the RMS residual (B,) of landmarks' coordinates over their tolerances, and their count (B,)."""
        residual, _ = self._objective.residuals(solution.state, target)
        counted = 2 * (target.weight_2d > 0).sum(1) + 3 * (target.weight_3d > 0).sum(1)
        return (residual[:, :105].square().sum(1) / counted).sqrt(), counted


def fit_landmarks(
    joints2d_px: NDArray[np.floating],
    depth_px: NDArray[np.floating] | None = None,
    is_right: NDArray[np.bool_] | None = None,
    hand: HandModel | None = None,
    config: FitConfig = FitConfig(),
) -> Fit:
    """Fit a hand model to landmarks of B hands. Reusing a `HandFitter` saves a tenth of a second per call.

    Args:
        joints2d_px: (B, 21, 2) photo pixels, FreiHAND's order; NaN where unknown.
        depth_px: (B, 21) in the same pixels, larger is farther, from any origin; None or NaN where unknown.
        is_right: (B,), default: all right.
        hand: default: the open hand.
        config: weights and tolerances of the cost.

    Raises:
        ValueError: wrong shapes, or a hand with fewer than `MIN_LANDMARKS` known landmarks.
    """
    count = len(joints2d_px)
    depth = np.full((count, 21), np.nan) if depth_px is None else np.asarray(depth_px)
    right = np.ones(count, bool) if is_right is None else np.asarray(is_right, bool)
    return HandFitter(hand, config).fit(Landmarks(np.asarray(joints2d_px), depth, right))
