"""The 21 joints of a parametric hand and their derivatives: a kinematic chain of five fingers, no vertices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from annotator.hand.model import FREIHAND_FROM_MANO, HandModel
from annotator.rotations import cross_matrix, rotvec_to_rotmat


class HandParameters(NamedTuple):
    """Global rotation, pose and shape of B right hands."""

    rotation: Tensor  # (B, 3, 3), rest frame to camera axes
    coefficients: Tensor  # (B, K), in std of the hand model's pose components
    betas: Tensor  # (B, 10)

    def rows(self, rows: Tensor) -> HandParameters:
        """Return some of the hands."""
        return HandParameters(*(values[rows] for values in self))

    def moved(self, step: Tensor) -> HandParameters:
        """Return the hands after a step (B, 3 + K + 10): a rotation about the camera's axes, then plain sums."""
        count = self.coefficients.shape[1]
        rotvec, coefficients, betas = step.split([3, count, 10], -1)
        return HandParameters(
            rotvec_to_rotmat(rotvec) @ self.rotation, self.coefficients + coefficients, self.betas + betas
        )


class PosedChain(NamedTuple):
    """B posed hands, wrist-relative, camera axes, millimetres. Axes `5, 3`: finger, joint from the palm."""

    joints_mm: Tensor  # (B, 21, 3)
    rotvecs: Tensor  # (B, 5, 3, 3) of each joint
    globals: Tensor  # (B, 5, 4, 3, 3) rotation of the bone before each joint, then of the last bone

    def rows(self, rows: Tensor) -> PosedChain:
        """Return some of the hands."""
        return PosedChain(*(values[rows] for values in self))

    def put(self, rows: Tensor, other: PosedChain) -> None:
        """Replace some of the hands by `other`, in place."""
        for mine, theirs in zip(self, other, strict=True):
            mine[rows] = theirs


@dataclass(frozen=True, eq=False)
class JointChain:
    """A hand model reduced to its joints. Tensors have one dtype and are on one device.

    A fingertip is treated as a point of its last bone, and joints as those of the skeleton: `R V` differs by 0.15 mm
    on average for the open hand.
    """

    rest_mm: Tensor  # (21, 3) wrist-relative, FreiHAND's order
    shape_mm: Tensor  # (21, 3, 10) change of `rest_mm` with each beta
    pose_mean: Tensor  # (5, 3, 3) axis-angle
    pose_components: Tensor  # (K, 5, 3, 3), one std of each component

    @staticmethod
    def of(
        hand: HandModel, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> JointChain:
        """Reduce a hand model."""
        order = list(FREIHAND_FROM_MANO)
        articulated = hand.J_regressor.astype(np.float64)

        def joints(of_vertices: np.ndarray) -> np.ndarray:
            skeleton = np.einsum("jv,v...->j...", articulated, of_vertices)
            points = np.concatenate([skeleton, of_vertices[hand.tip_vertices]])[order]
            return 1000 * (points - points[:1])

        moving = hand.moving_components()
        in_finger_order = np.array(FREIHAND_FROM_MANO[1:]).reshape(5, 4)[:, :3] - 1
        components = (hand.hands_components * hand.hands_std[:, None])[moving].reshape(-1, 15, 3)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype, device=device)

        return JointChain(
            rest_mm=tensor(joints(hand.v_template.astype(np.float64))),
            shape_mm=tensor(joints(hand.shapedirs.astype(np.float64))),
            pose_mean=tensor(hand.hands_mean.reshape(15, 3)[in_finger_order]),
            pose_components=tensor(components[:, in_finger_order]),
        )

    @property
    def pose_dim(self) -> int:
        """K, the number of pose components that move a joint."""
        return len(self.pose_components)

    def posed(self, hands: HandParameters) -> PosedChain:
        """Return the posed joints of B hands."""
        count = len(hands.betas)
        rest = self.rest_mm + (hands.betas @ self.shape_mm.flatten(0, 1).mT).view(count, 21, 3)
        fingers = rest[:, 1:].view(count, 5, 4, 3)
        rotvecs = self.pose_mean + (hands.coefficients @ self.pose_components.flatten(1)).view(count, 5, 3, 3)
        local = rotvec_to_rotmat(rotvecs)
        chained = [hands.rotation[:, None].expand(-1, 5, -1, -1)]
        points = [fingers[:, :, 0] @ hands.rotation.mT]
        for k in range(3):
            chained.append(chained[-1] @ local[:, :, k])
            bone = (fingers[:, :, k + 1] - fingers[:, :, k])[..., None]
            points.append(points[-1] + (chained[-1] @ bone)[..., 0])
        joints = torch.cat([torch.zeros_like(rest[:, :1]), torch.stack(points, 2).flatten(1, 2)], 1)
        return PosedChain(joints, rotvecs, torch.stack(chained, 2))

    def derivatives(self, posed: PosedChain) -> Tensor:
        """Return the derivatives of joints by a step of `HandParameters.moved`: (B, 21, 3, 3 + K + 10), millimetres."""
        count = len(posed.joints_mm)
        fingers = posed.joints_mm[:, 1:].view(count, 5, 4, 3)
        by_rotation = -cross_matrix(posed.joints_mm)
        # Joint j rotates about the columns of `axes`: its bone's frame times the exponential map's left Jacobian.
        axes = posed.globals[:, :, :3] @ left_jacobian(posed.rotvecs)
        by_rotvec = torch.zeros(count, 5, 4, 3, 3, 3).to(
            fingers
        )  # finger, moved joint, xyz, rotated joint, its axis
        for j in range(3):
            arm = fingers[:, :, j + 1 :] - fingers[:, :, j : j + 1]
            by_rotvec[:, :, j + 1 :, :, j] = -cross_matrix(arm) @ axes[:, :, j, None]
        # Each finger has its own rows in the pose components.
        components = self.pose_components.permute(1, 2, 3, 0).reshape(5, 9, -1)
        by_pose = by_rotvec.reshape(count, 5, 12, 9) @ components
        by_beta = self._by_beta(posed)
        of_wrist = by_pose.new_zeros(count, 1, 3, self.pose_dim)
        by_pose = torch.cat([of_wrist, by_pose.view(count, 20, 3, self.pose_dim)], 1)
        return torch.cat([by_rotation, by_pose, by_beta], -1)

    def rotations(self, posed: PosedChain) -> Tensor:
        """Return the rotation of each bone, about the camera's axes, by a step of `HandParameters.moved`.

        The shape is (B, 5, 4, 3, 3 + K + 10): per finger the palm, common to all, then its three bones.
        """
        count = len(posed.joints_mm)
        axes = posed.globals[:, :, :3] @ left_jacobian(posed.rotvecs)
        components = self.pose_components.permute(1, 2, 3, 0)
        by_pose = (axes @ components).cumsum(2)
        by_pose = torch.cat([torch.zeros_like(by_pose[:, :, :1]), by_pose], 2)
        by_rotation = torch.eye(3).to(by_pose).expand(count, 5, 4, 3, 3)
        return torch.cat([by_rotation, by_pose, by_pose.new_zeros(count, 5, 4, 3, 10)], -1)

    def _by_beta(self, posed: PosedChain) -> Tensor:
        """Return the derivatives of joints by betas (B, 21, 3, 10)."""
        count = len(posed.joints_mm)
        fingers = self.shape_mm[1:].view(5, 4, 3, 10)
        bones = torch.cat([fingers[:, :1], fingers.diff(dim=1)], 1)
        moved = (posed.globals @ bones).cumsum(2)
        return torch.cat([moved.new_zeros(count, 1, 3, 10), moved.flatten(1, 2)], 1)


def left_jacobian(rotvecs: Tensor) -> Tensor:
    """Return J (..., 3, 3) of rotation vectors v (..., 3): exp(v + d) = exp(J d) exp(v) to first order."""
    angle = rotvecs.norm(dim=-1)[..., None, None]
    small = angle < 1e-3
    safe = torch.where(small, 1.0, angle)
    first = torch.where(small, 0.5 - angle.square() / 24, (1 - safe.cos()) / safe.square())
    second = torch.where(small, 1 / 6 - angle.square() / 120, (safe - safe.sin()) / safe**3)
    cross = cross_matrix(rotvecs)
    return torch.eye(3).to(rotvecs) + first * cross + second * cross @ cross
