"""The true visibility of joints: a joint lies inside the flesh, so the skin around it decides.

A joint is visible if more than half of the skin around it that faces the camera is visible. A knuckle is thus visible
from the back of the hand and from the palm. Objects, the rest of the hand, flat occluders and the photo's edge hide
skin.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from annotator.hand.model import HandModel
from annotator.render.shading import vertex_normals

#: Std of the weights of skin by its distance from the joint: skin more than a finger's width away hardly counts.
REACH_MM = 8.0


class VisibleJoints:
    """The skin around each joint of a hand model: the vertices nearer to it than to any other joint, at rest."""

    def __init__(self, hand: HandModel, device: torch.device | str = "cpu") -> None:
        joints = hand.joint_regressor @ hand.v_template
        distance_mm = 1000 * np.linalg.norm(joints[:, None] - hand.v_template, axis=-1)  # (21, V)
        nearest = distance_mm.min(0) == distance_mm
        weight = nearest * np.exp(-((distance_mm / REACH_MM) ** 2) / 2)
        self.weight = torch.from_numpy(weight.astype(np.float32)).to(device)  # (21, V)
        self.faces = torch.from_numpy(hand.faces.astype(np.int64)).to(device)

    def visible(self, vertices_mm: Tensor, cam_t_mm: Tensor, visible_vertices: Tensor) -> Tensor:
        """Return (B, 21) bool: the visible joints.

        Args:
            vertices_mm: (B, V, 3) camera axes, wrist-relative.
            cam_t_mm: (B, 3) the wrist before the pinhole.
            visible_vertices: (B, V) bool.
        """
        to_camera = -F.normalize(vertices_mm + cam_t_mm[:, None], dim=-1)
        facing = (vertex_normals(vertices_mm, self.faces) * to_camera).sum(-1).clamp_min(0)
        return (facing * visible_vertices) @ self.weight.mT > facing @ self.weight.mT / 2
