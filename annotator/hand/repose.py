"""Pose an already posed mesh: rotate, bend and reshape it by linear blend skinning with its own skeleton.

`HandLayer` poses the template. Here any mesh of a hand model, such as AMVUR's mean, serves as the hand at rest. Its
offsets from the parametric hand move with the bones. Pose correctives (MANO's) stay as in that mesh.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from annotator.hand.model import MANO_FROM_FREIHAND, HandModel
from annotator.rotations import rotmat_to_rotvec, rotvec_to_rotmat

#: Share of the hand model's pose variance in the pose components that are kept.
POSE_SHARE = 0.99

_BETAS = 10


class Bones(NamedTuple):
    """The skeleton of B meshes."""

    frames: Tensor  # (B, 16, 3, 3), each bone's rotation from the template's rest pose
    joints_mm: Tensor  # (B, 16, 3), MANO's order
    bends: Tensor  # (B, 15, 3), axis-angle of each finger bone in its parent's frame


class Skin(NamedTuple):
    """P vertices of B meshes, and their dependence on bones and betas."""

    vertices_mm: Tensor  # (B, P, 3)
    weights: Tensor  # (P, 16)
    shapes_mm: Tensor  # (B, P, 3, 10), offset per beta before the bones' joints move


class Reposer(nn.Module):
    """Move right-hand meshes by parameters: 3 of a rotation about the wrist, K of pose, 10 betas.

    The rotation is axis-angle, radians, in the mesh's axes. Pose, along the hand model's K largest components, and
    betas are changes, in std. Zeros leave the mesh unchanged.
    """

    weights: Tensor  # (V, 16)
    template_mm: Tensor  # (V, 3)
    shapedirs_mm: Tensor  # (V, 3, 10)
    joint_shapes_mm: Tensor  # (16, 3, 10)
    pose_components: Tensor  # (K, 45), radians per std
    R: Tensor  # (21, V)

    def __init__(self, hand: HandModel) -> None:
        super().__init__()
        self.parents = [int(parent) for parent in hand.kintree_table[0]]
        self._articulated = list(MANO_FROM_FREIHAND[:16])
        order = np.argsort(-hand.hands_std, kind="stable")
        held = np.cumsum(np.square(hand.hands_std[order], dtype=np.float64))
        kept = order[: 1 + int(np.searchsorted(held, POSE_SHARE * held[-1]))]
        self.pose_count = len(kept)
        shapedirs_mm = 1000 * hand.shapedirs
        buffers = {
            "weights": hand.weights,
            "template_mm": 1000 * hand.v_template,
            "shapedirs_mm": shapedirs_mm,
            "joint_shapes_mm": np.tensordot(hand.J_regressor, shapedirs_mm, 1),
            "pose_components": (hand.hands_components * hand.hands_std[:, None])[kept],
            "R": hand.joint_regressor,
        }
        for name, values in buffers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    @property
    def parameter_count(self) -> int:
        """The number of parameters, 3 + K + 10."""
        return 3 + self.pose_count + _BETAS

    def bones(self, meshes_mm: Tensor) -> Bones:
        """Fit the skeletons of meshes (B, V, 3): joints are R V, frames the best rotations of each bone's vertices."""
        own = self.weights.square() / self.weights.square().sum(0)
        centred_mm = meshes_mm[:, :, None] - torch.einsum("vk,bvc->bkc", own, meshes_mm)[:, None]
        moments = torch.einsum("vk,bvkc,vd->bkcd", own, centred_mm, self.template_mm)
        import roma  # its import takes a second, and only samples need it

        frames = roma.special_procrustes(moments)
        joints_mm = self.R[self._articulated] @ meshes_mm
        local = frames[:, self.parents[1:]].mT @ frames[:, 1:]
        return Bones(frames, joints_mm, rotmat_to_rotvec(local))

    def skin(self, bones: Bones, meshes_mm: Tensor, rows: Tensor | slice = slice(None)) -> Skin:
        """Return the skinning of the vertices `rows` of meshes (B, V, 3) to their bones."""
        weights = self.weights[rows]
        # A bone's frame rotates the beta's offset of a vertex minus its offset of the bone's joint.
        of_vertices = torch.einsum("vk,bkcd,vds->bvcs", weights, bones.frames, self.shapedirs_mm[rows])
        of_joints = torch.einsum("bkcd,kds->bkcs", bones.frames, self.joint_shapes_mm)
        shapes_mm = of_vertices - torch.einsum("vk,bkcs->bvcs", weights, of_joints)
        return Skin(meshes_mm[:, rows], weights, shapes_mm)

    def move(self, bones: Bones, skin: Skin, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Move each of B meshes N times.

        Args:
            bones: from `bones`.
            skin: from `skin`.
            parameters: (B, N, parameter_count).

        Returns:
            Vertices (B, N, P, 3) and articulated joints (B, N, 16, 3) in MANO's order, millimetres; the wrist stays.
        """
        rotvec, coefficients, betas = parameters.split([3, self.pose_count, _BETAS], -1)
        bends = bones.bends[:, None] + (coefficients @ self.pose_components).unflatten(-1, (15, 3))
        local = rotvec_to_rotmat(bends)
        growth = torch.einsum("kcs,bns->bnkc", self.joint_shapes_mm, betas)
        before = bones.frames[:, None]
        # Down the skeleton; `shift` is a joint's offset by betas before any rotation.
        shift = [torch.zeros_like(rotvec)]
        after = [rotvec_to_rotmat(rotvec) @ before[:, :, 0]]
        change = [rotvec_to_rotmat(rotvec)]
        joints_mm = [bones.joints_mm[:, None, 0] + shift[0]]
        for bone, parent in enumerate(self.parents[1:], 1):
            grown = _rotated(before[:, :, parent], growth[:, :, bone] - growth[:, :, parent])
            length_mm = bones.joints_mm[:, None, bone] - bones.joints_mm[:, None, parent] + grown
            shift.append(shift[parent] + grown)
            joints_mm.append(joints_mm[parent] + _rotated(change[parent], length_mm))
            after.append(after[parent] @ local[:, :, bone - 1])
            change.append(after[bone] @ before[:, :, bone].mT)
        changes, shifts, joints = torch.stack(change, 2), torch.stack(shift, 2), torch.stack(joints_mm, 2)
        # sum_k w_k (change_k (v - start_k) + joint_k): the weights blend all bones' maps in one product.
        offsets = joints - _rotated(changes, bones.joints_mm[:, None] + shifts)
        blended = skin.weights @ torch.cat([changes.flatten(-2), offsets], -1)
        shaped = skin.vertices_mm[:, None] + torch.einsum("bvcs,bns->bnvc", skin.shapes_mm, betas)
        shaped = shaped + skin.weights @ shifts
        return _rotated(blended[..., :9].unflatten(-1, (3, 3)), shaped) + blended[..., 9:], joints


def _rotated(matrices: Tensor, points: Tensor) -> Tensor:
    """Multiply matrices (..., 3, 3) by points (..., 3)."""
    return (matrices * points[..., None, :]).sum(-1)
