"""Refine prior-net's hand on the landmarks that the network reads out: a few steps of `amvur fit`. Not in the paper.

Prior-net's inverse kinematics starts so close to the minimum that two Levenberg-Marquardt steps are enough. The cost
is that of `annotator/fitting/objective.py`. No gradient passes through the steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from annotator.config import FitConfig
from annotator.fitting.chain import HandParameters, JointChain
from annotator.fitting.objective import FitObjective, Target
from annotator.fitting.solver import descend
from annotator.fitting.start import at_hands
from annotator.hand.model import HandModel
from annotator.model.prior_net import REACH, HandPose

_PARTS = ("rest_mm", "shape_mm", "pose_mean", "pose_components")


class Refinement(nn.Module):
    """Refine pose and shape of prior-net's hands on landmarks."""

    moving: Tensor  # (K,) indices of the pose components that move a joint

    def __init__(self, hand: HandModel, steps: int, config: FitConfig = FitConfig()) -> None:
        """Reduce the hand model to its joints; `steps` is the number of solver steps per hand."""
        super().__init__()
        self.steps, self.config = steps, config
        chain = JointChain.of(hand, torch.float32)
        for name in _PARTS:
            self.register_buffer(name, getattr(chain, name), persistent=False)
        self.register_buffer("moving", torch.from_numpy(hand.moving_components()), persistent=False)

    @torch.no_grad()
    def forward(self, pose: HandPose, landmarks: Tensor) -> HandPose:
        """Return the refined pose and shape of B hands.

        Args:
            pose: prior-net's.
            landmarks: (B, 21, 3) crop coordinates, depth in the same unit.
        """
        chain = JointChain(*(getattr(self, name) for name in _PARTS))
        target = Target.of(landmarks.detach().float(), self.config)
        start = HandParameters(
            pose.wrist.clone(), pose.coefficients[:, self.moving].clone(), pose.betas.clone()
        )
        state, _ = descend(
            FitObjective(chain, self.config), target, at_hands(chain, start, target), self.steps
        )
        coefficients = pose.coefficients.clone()
        coefficients[:, self.moving] = state.hands.coefficients
        return HandPose(
            state.hands.rotation, coefficients.clamp(-REACH, REACH), state.hands.betas.clamp(-REACH, REACH)
        )
