"""Linear blend skinning in plain torch, for every hand except MANO."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from annotator.hand.model import HandModel


class Skinning(nn.Module):
    """Pose mesh and skeleton of a `HandModel` by formulas (2) to (4) of Romero et al., 2017.

    Everything is a buffer, so `to` and `double` apply; nothing enters a `state_dict`. Joints are ordered by level of
    the kinematic tree: the wrist, then the first joints of all fingers, and so on. Each level is one product.
    """

    template: Tensor  # (V * 3,)
    shapedirs: Tensor  # (10, V * 3)
    posedirs: Tensor | None  # (135, V * 3); None if all are zero
    joint_template: Tensor  # (16 * 3,) joints of the mean shape
    joint_shapedirs: Tensor  # (10, 16 * 3)
    weights: Tensor  # (V, 16)
    order: Tensor  # (16,) joints by level, in MANO's numbers
    index_in_order: Tensor  # (16,) the inverse: index of each of MANO's joints in `order`
    parents: Tensor  # (16,) index of each joint's parent in `order`; the wrist is its own parent

    def __init__(self, hand: HandModel) -> None:
        super().__init__()
        parents = np.maximum(hand.kintree_table[0], 0)
        depth = np.zeros(16, int)
        for joint in range(1, 16):
            depth[joint] = depth[parents[joint]] + 1
        order = np.argsort(depth, kind="stable")
        index_in_order = np.argsort(order)
        self.level_sizes = np.bincount(depth).tolist()
        # Joints are linear in the shaped vertices and so in betas: the sum over vertices is computed here, once.
        regressor = hand.J_regressor[order].astype(np.float64)
        arrays = {
            "template": hand.v_template.reshape(-1),
            "shapedirs": hand.shapedirs.reshape(-1, 10).T,
            "posedirs": hand.posedirs.reshape(-1, 135).T if hand.posedirs.any() else None,
            "joint_template": (regressor @ hand.v_template).reshape(-1).astype(np.float32),
            "joint_shapedirs": np.einsum("jv,vck->kjc", regressor, hand.shapedirs)
            .reshape(10, -1)
            .astype(np.float32),
            "weights": hand.weights[:, order],
            "order": order,
            "index_in_order": index_in_order,
            "parents": index_in_order[parents[order]],
        }
        for name, array in arrays.items():
            tensor = None if array is None else torch.from_numpy(np.ascontiguousarray(array))
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, rotations: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """Pose the hand.

        Args:
            rotations: (B, 16, 3, 3), absolute, each relative to its parent, in MANO's joint order.
            betas: (B, 10).

        Returns:
            Vertices (B, V, 3) and the 16 joints (B, 16, 3), MANO's order; rest frame, metres.
        """
        rest = torch.addmm(self.template, betas, self.shapedirs)
        if self.posedirs is not None:
            identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
            rest = rest + (rotations[:, 1:] - identity).flatten(1) @ self.posedirs
        rest_joints = torch.addmm(self.joint_template, betas, self.joint_shapedirs).unflatten(1, (16, 3))
        chained, joints = self._chain(rotations.index_select(1, self.order), rest_joints)
        # Each vertex moves by the weighted mean of its joints' maps v -> rotation v + shift, computed column by column.
        shifts = joints - (chained @ rest_joints[..., None]).squeeze(-1)
        columns = torch.cat([chained.transpose(-1, -2).flatten(2), shifts], dim=-1)  # (B, 16, 12)
        of_x, of_y, of_z, shift = (self.weights @ columns).split(3, dim=-1)  # (B, V, 3) each
        x, y, z = rest.unflatten(1, (-1, 3)).split(1, dim=-1)
        return x * of_x + y * of_y + z * of_z + shift, joints.index_select(1, self.index_in_order)

    def _chain(self, rotations: Tensor, rest_joints: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotations (B, 16, 3, 3) in the rest frame and posed joints (B, 16, 3), both ordered by level."""
        bones = rest_joints - rest_joints.index_select(1, self.parents)
        chained, joints = rotations[:, :1], rest_joints[:, :1]
        end = 1
        all_chained, all_joints = [chained], [joints]
        for size in self.level_sizes[1:]:
            start, end = end, end + size
            above = self.parents[start:end] - (start - chained.shape[1])
            chained, joints = chained.index_select(1, above), joints.index_select(1, above)
            joints = joints + (chained @ bones[:, start:end, :, None]).squeeze(-1)
            chained = chained @ rotations[:, start:end]
            all_chained.append(chained)
            all_joints.append(joints)
        return torch.cat(all_chained, dim=1), torch.cat(all_joints, dim=1)
