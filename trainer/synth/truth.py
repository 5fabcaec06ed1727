"""True labels of synthetic hands, as label columns."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from annotator.coordinates import axes_of_ray, crop_from_camera, rotation_vectors
from annotator.hand import HandModel
from annotator.labels.schema import ROUNDING, SCHEMA_VERSION, labels_to_table
from trainer.synth.hands import DrawnPhotos, SyntheticHands


def true_columns(
    photos: DrawnPhotos, hands: SyntheticHands, is_right: Tensor, size_px: int
) -> dict[str, Any]:
    """Return the true label columns of B hands that `hands` drew."""
    scene, count = photos.scene, len(photos.scene)
    seen = hands.visible_vertices(photos)
    joint_visible = hands.visible_joints(photos, seen).numpy()
    half = size_px / 2
    mirror = torch.where(is_right, 1.0, -1.0)[:, None, None] * torch.tensor([1.0, 0, 0]) + torch.tensor(
        [0.0, 1, 1]
    )
    joints3d_mm, joints2d = scene.joints3d_mm * mirror, scene.project(scene.joints3d_mm) * mirror[..., :2]
    vertices2d = scene.project(scene.vertices_mm) * mirror[..., :2]
    axes = axes_of_ray(scene.ray * mirror[:, 0, :2])
    scale, translation = weak_perspective(crop_from_camera(joints3d_mm, axes), joints2d)
    vertices_px = (vertices2d.numpy() + 1) * half
    return {
        "box_xyxy": np.concatenate([vertices_px.min(1), vertices_px.max(1)], 1),
        "crop_xyxy": np.tile([0.0, 0.0, size_px, size_px], (count, 1)),
        "is_right": is_right.numpy(),
        "side_score": None,
        "detection_score": None,
        "joints3d_mm": joints3d_mm.numpy(),
        "joints3d_std_mm": None,
        "joints2d_px": (joints2d.numpy() + 1) * half,
        "joints2d_std_px": None,
        "vertices_mm": (scene.vertices_mm * mirror).numpy(),
        "vertices_std_mm": None,
        "pose": scene.pose.numpy(),
        "betas": scene.betas.numpy(),
        "camera": {
            "scale": scale.numpy(),
            "rotation": rotation_vectors(axes.mT.numpy()),
            "translation": translation.numpy(),
            "cam_t_mm": (scene.cam_t_mm * mirror[:, 0]).numpy(),
            "focal_px": scene.focal.numpy() * half,
            "principal_px": ((scene.principal * mirror[:, 0, :2]).numpy() + 1) * half,
            "focal_source": ["given"] * count,
        },
        "vertex_rgb": photos.vertex_rgb.numpy(),
        "vertex_visible": seen.numpy(),
        "visible_fraction": seen.float().mean(1).numpy(),
        "joint_visible": joint_visible,
        "hidden_joints": (~joint_visible).sum(1),
        "joint_std_mm": None,
        "max_joint_std_mm": None,
        "vertex_std_mm": None,
    }


def weak_perspective(points_mm: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Fit scale (B,) and translation (B, 2) that map points (B, N, 3), crop axes, to `seen` (B, N, 2)."""
    flat = points_mm[..., :2]
    around, seen_around = flat - flat.mean(1, keepdim=True), seen - seen.mean(1, keepdim=True)
    scale = (around * seen_around).sum((1, 2)) / around.square().sum((1, 2))
    return scale, seen.mean(1) - scale[:, None] * flat.mean(1)


def truth_row(name: str, columns: dict[str, Any], size_px: int, schema: pa.Schema) -> pa.Table:
    """Return the table of one photo, with one row."""
    row = {"image_uri": f"images/{name}", "image_id": name, "hand_index": 0, "status": "ok"}
    row |= {"width": size_px, "height": size_px, "box_source": "list"}
    return labels_to_table([row], columns, [0], schema)


def truth_facts(hand: HandModel, seed: int, size_px: int) -> str:
    """Return the metadata of the truth, as JSON."""
    facts = {
        "schema_version": SCHEMA_VERSION,
        "synthetic": {"seed": seed, "size_px": size_px},
        "hand": hand.id,
        "shapes": {"joints3d_mm": [21, 3], "joints2d_px": [21, 2], "vertices_mm": [hand.vertex_count, 3]},
        "rounding": ROUNDING,
    }
    return json.dumps(facts, sort_keys=True)
