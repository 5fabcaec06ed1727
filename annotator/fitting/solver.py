"""Levenberg-Marquardt on a batch of hands: each has its own damping, and leaves when it no longer improves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from annotator.fitting.chain import PosedChain
from annotator.fitting.objective import FitObjective, State, Target

#: Damping as a share of the curvature's diagonal: start, factors after a good and a bad step, bounds.
_START, _BETTER, _WORSE, _LEAST, _MOST = 1e-2, 0.2, 5.0, 1e-7, 1e6

#: A step that reduces the cost by a smaller share is the last.
_ENOUGH = 1e-6


@dataclass(frozen=True, eq=False)
class Solution:
    """Result of the steps for B hands."""

    state: State
    cost: Tensor  # (B,) half the sum of squares
    curvature: Tensor  # (B, D, D) of the cost: J^T J and the prior


def solve(objective: FitObjective, target: Target, start: State, most_steps: int) -> Solution:
    """Minimise the objective of each hand in at most `most_steps` steps."""
    state, cost = descend(objective, target, start, most_steps)
    residual, posed = objective.residuals(state, target)
    prior = objective.prior_precision(state)
    curvature, _ = _normal(objective, state, target, residual, posed, prior)
    return Solution(state, cost, curvature)


def descend(objective: FitObjective, target: Target, start: State, most_steps: int) -> tuple[State, Tensor]:
    """Return the state after at most `most_steps` steps and its cost (B,), as `solve` does without the curvature."""
    state = start.rows(torch.arange(len(start.log_scale), device=start.log_scale.device))
    prior = objective.prior_precision(state)
    residual, posed = objective.residuals(state, target)
    cost = _half_square(residual)
    damping = torch.full_like(cost, _START)
    active = torch.arange(len(cost), device=cost.device)
    part, part_target = state, target
    for _ in range(most_steps):
        curvature, slope = _normal(objective, part, part_target, residual, posed, prior)
        diagonal = curvature.diagonal(dim1=-2, dim2=-1)
        damped = curvature + torch.diag_embed(diagonal * damping[:, None])
        factor, failed = torch.linalg.cholesky_ex(damped)
        step = -torch.cholesky_solve(slope[..., None], factor)[..., 0]
        step = torch.where((failed == 0)[:, None], step, 0.0)
        trial = part.moved(step)
        trial_residual, trial_posed = objective.residuals(trial, part_target)
        before, after = cost[active], _half_square(trial_residual)
        better = after < before  # false for NaN
        state.put(active[better], trial.rows(better))
        posed.put(better, trial_posed.rows(better))
        residual[better], cost[active[better]] = trial_residual[better], after[better]
        damping = (damping * torch.where(better, _BETTER, _WORSE)).clamp(min=_LEAST)
        ended = (better & (before - after < _ENOUGH * before)) | (damping > _MOST)
        going = ~ended
        active, damping, residual, posed = active[going], damping[going], residual[going], posed.rows(going)
        if len(active) == 0:
            break
        part, part_target = state.rows(active), part_target.rows(going)
    return state, cost


def _normal(
    objective: FitObjective, state: State, target: Target, residual: Tensor, posed: PosedChain, prior: Tensor
) -> tuple[Tensor, Tensor]:
    """Return curvature (B, D, D) and gradient (B, D) of the cost."""
    rows = objective.derivatives(state, target, posed)
    curvature = rows.mT @ rows + torch.diag(prior)
    slope = (rows.mT @ residual[:, : rows.shape[1], None])[..., 0]
    own = torch.cat([state.hands.coefficients, state.hands.betas], -1)
    slope[:, 3:-4] += prior[3:-4] * own
    return curvature, slope


def _half_square(residual: Tensor) -> Tensor:
    return residual.square().sum(-1) / 2
