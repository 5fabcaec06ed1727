"""Prior-net (sections 3.1 and 3.3): the model-based half, whose hand is the mean of p(V | I).

`g` -> global rotation, pose, shape -> hand layer -> `V_p`, `J_p = R V_p`;
p(V | I) = N(V_p, 1) and p(J3 | I) = N(J_p, 1), with centimetres as the unit of that 1.

Not in the paper: if the network reads landmarks, a second network solves inverse kinematics. It predicts the same
numbers from landmarks alone, so synthetic joints can train it without photos (`trainer/inverse_kinematics.py`). The
network on `g` then corrects it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from annotator.hand.layer import HandLayer
from annotator.hand.model import HandModel
from annotator.model.attention import zero_start
from annotator.rotations import gram_schmidt, rotmat_to_rotvec, rotvec_to_rotmat

#: Rotates the rest frame (fingers -x, palm -y) to an upright hand whose palm faces the camera.
UPRIGHT = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))

#: Std of p(V | I) and p(J3 | I), the 1 of formulas (3) and (5): a centimetre.
PRIOR_STD_MM = 10.0

#: Bound of pose and shape, in std, so that a bad step can't blow a hand up to metres. A few poses in a thousand
#: exceed it, and lose at most 2 mm.
REACH = 5.0

#: Sizes of the regressed parts: a rotation, coefficients of the fingers' pose, betas.
_ROTATION, _POSE, _BETAS = 6, 45, 10


@dataclass
class PriorHand:
    """Prior-net's prediction of B hands; crop axes, wrist-relative."""

    vertices_mm: Tensor  # (B, V, 3), V_p
    joints3d_mm: Tensor  # (B, 21, 3), J_p = R V_p
    rotations: Tensor  # (B, 16, 3, 3), the wrist's first, then MANO's joints
    coefficients: (
        Tensor  # (B, 45) of the fingers' pose, in standard deviations of the hand model's pose components
    )
    betas: Tensor  # (B, 10)

    def pose(self) -> Tensor:
        """Return the pose (B, 48) in absolute axis-angle, as in labels."""
        return rotmat_to_rotvec(self.rotations).flatten(1)


class HandPose(NamedTuple):
    """Pose and shape of B hands."""

    wrist: Tensor  # (B, 3, 3) global rotation
    coefficients: Tensor  # (B, 45) of the fingers' pose, see `PriorHand`
    betas: Tensor  # (B, 10)


class PriorNet(nn.Module):
    """Map the global feature (B, feature_dim) to a parametric hand.

    The global rotation is six numbers, made orthonormal (continuous everywhere, unlike axis-angle). The fingers are
    coefficients of the hand model's pose components, in units of their std. The shape is betas. Coefficients and
    betas are bounded by `REACH`. The last layer starts at zero, so an untrained prior-net gives the mean hand,
    upright.
    """

    upright: Tensor  # (3, 3)
    no_rotation: Tensor  # (3, 2)
    pose_mean: Tensor  # (45,)
    pose_components: Tensor  # (45, 45)

    def __init__(
        self,
        feature_dim: int,
        hand: HandModel,
        layer: HandLayer,
        width: int = 512,
        landmarks: bool = False,
    ) -> None:
        """Build the network; with `landmarks` it has `ik`, inverse kinematics from 21 landmarks."""
        super().__init__()
        self.layer = layer
        size = _ROTATION + _POSE + _BETAS
        self.mlp = nn.Sequential(nn.Linear(feature_dim, width), nn.ReLU(), zero_start(nn.Linear(width, size)))
        self.ik: nn.Sequential | None = None
        if landmarks:
            self.ik = nn.Sequential(
                *(nn.Flatten(), nn.Linear(3 * 21, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
                zero_start(nn.Linear(width, size)),
            )
        self.register_buffer("upright", torch.tensor(UPRIGHT), persistent=False)
        components = hand.hands_components * hand.hands_std[:, None]
        self.register_buffer("pose_mean", torch.as_tensor(hand.hands_mean), persistent=False)
        self.register_buffer("pose_components", torch.as_tensor(components), persistent=False)
        self.register_buffer("no_rotation", torch.eye(3)[:, :2], persistent=False)

    def forward(self, g: Tensor, landmarks: Tensor | None = None) -> PriorHand:
        """Return B hands; arguments as for `pose`."""
        return self.posed(*self.pose(g, landmarks))

    def pose(self, g: Tensor, landmarks: Tensor | None = None) -> HandPose:
        """Return the pose and shape of B hands, without their meshes.

        Args:
            g: (B, feature_dim).
            landmarks: (B, 21, 3) from `landmarker.network.normalised`, in the axes of the crop; required with `ik`.
        """
        numbers = self.mlp(g)
        if self.ik is not None:
            numbers = numbers + self.ik(landmarks)
        return self._pose(numbers)

    def from_landmarks(self, landmarks: Tensor) -> PriorHand:
        """Return the hands that `ik` predicts from normalised landmarks (B, 21, 3) alone, without a photo."""
        assert self.ik is not None
        return self.posed(*self._pose(self.ik(landmarks)))

    def _pose(self, numbers: Tensor) -> HandPose:
        rotation, coefficients, betas = numbers.float().split([_ROTATION, _POSE, _BETAS], -1)
        coefficients, betas = (REACH * (x / REACH).tanh() for x in (coefficients, betas))
        # Gram-Schmidt on two columns that start as those of the identity.
        wrist = gram_schmidt(rotation.view(-1, 3, 2) + self.no_rotation) @ self.upright
        return HandPose(wrist, coefficients, betas)

    def posed(self, wrist: Tensor, coefficients: Tensor, betas: Tensor) -> PriorHand:
        """Pose hands by global rotations (B, 3, 3), pose coefficients (B, 45) and betas (B, 10)."""
        fingers = rotvec_to_rotmat((self.pose_mean + coefficients @ self.pose_components).view(-1, 15, 3))
        rotations = torch.cat([wrist[:, None], fingers], 1)
        vertices_mm, joints3d_mm = self.layer(rotations, betas)
        return PriorHand(vertices_mm, joints3d_mm, rotations, coefficients, betas)


def mean_hand(layer: HandLayer, hand: HandModel) -> PriorHand:
    """Return the mean hand (B = 1), upright, palm to the camera: the start of every regression."""
    fingers = rotvec_to_rotmat(torch.as_tensor(hand.hands_mean).view(1, 15, 3))
    rotations = torch.cat([torch.tensor(UPRIGHT).view(1, 1, 3, 3), fingers], 1)
    betas = torch.zeros(1, 10)
    vertices_mm, joints3d_mm = layer(rotations, betas)
    return PriorHand(vertices_mm, joints3d_mm, rotations, torch.zeros(1, 45), betas)
