"""The layer that poses every parametric hand: MANO with `smplx`, any other hand with `skinning.py`."""

from __future__ import annotations

import torch
from torch import nn

from annotator.hand.model import FREIHAND_FROM_MANO, HandModel
from annotator.hand.skinning import Skinning


class HandLayer(nn.Module):
    """Compute mesh and joints from pose and shape. The layer has no parameters and no entries in a `state_dict`.

    Rotations are absolute (no mean pose is added), in MANO's joint order, the wrist's first. Buffers:
    `faces (F, 3)`, `joint_regressor (21, V)` (`R`), `template (V, 3)` in metres, `tip_vertices (5,)`.
    `id` is that of the hand model.

    Raises:
        UserError: the hand is MANO, and the extra `mano` is not installed.
    """

    faces: torch.Tensor
    joint_regressor: torch.Tensor
    template: torch.Tensor
    tip_vertices: torch.Tensor

    def __init__(self, hand: HandModel) -> None:
        super().__init__()
        self.id = hand.id
        self.skinning = _skinning(hand)
        self.register_buffer("faces", torch.from_numpy(hand.faces).long())
        self.register_buffer("joint_regressor", torch.from_numpy(hand.joint_regressor))
        self.register_buffer("template", torch.from_numpy(hand.v_template))
        self.register_buffer("tip_vertices", torch.from_numpy(hand.tip_vertices))
        # A checkpoint refers to its hand by id. It must never contain a licensed mesh.
        for module in self.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)

    def articulate(self, rotations: torch.Tensor, betas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pose hands by rotation matrices (B, 16, 3, 3) and betas (B, 10), in the rest frame, metres.

        Return vertices (B, V, 3) and the 21 joints (B, 21, 3) in FreiHAND's order: the 16 articulated
        joints of the skeleton and the fingertip vertices.
        """
        vertices, joints = self.skinning(rotations, betas)
        joints = torch.cat([joints, vertices[:, self.tip_vertices]], dim=1)
        return vertices, joints[:, FREIHAND_FROM_MANO]

    def forward(self, rotations: torch.Tensor, betas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pose hands by rotation matrices (B, 16, 3, 3) and betas (B, 10), wrist-relative, millimetres.

        Return vertices (B, V, 3) and joints J3 = R V (B, 21, 3); the wrist (R V)_0 is the origin.
        """
        vertices, _ = self.articulate(rotations, betas)
        joints = self.joint_regressor @ vertices
        wrist = joints[:, :1]
        return 1000.0 * (vertices - wrist), 1000.0 * (joints - wrist)


def _skinning(hand: HandModel) -> nn.Module:
    if hand.name == "mano":
        from annotator.hand.smplx_skinning import SmplxSkinning

        return SmplxSkinning(hand)
    return Skinning(hand)
