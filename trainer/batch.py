"""A batch of training examples: crops of right hands and their known targets.

Any example may lack any target. A missing target is zero (a mask: all 255) and flagged, never NaN, so that it has no
gradient. Left hands have been mirrored before, photo and labels alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from trainer.config import TARGETS, Target


@dataclass
class Batch:
    """B examples. Crop coordinates run from -1 to 1 over the image; 3D is in crop axes, wrist-relative millimetres."""

    key: Tensor  # (B,) int64: seeds all randomness of an example in this step
    image: Tensor  # (B, 3, S, S) uint8 RGB
    has_hand: Tensor  # (B,) bool; without a hand, nothing else is known
    joints2d: Tensor  # (B, 21, 2) crop
    joints2d_std: Tensor  # (B, 21) std of the annotation, crop half-sides; 0 where unknown
    has_joints2d: Tensor  # (B, 21) bool
    joints3d_mm: Tensor  # (B, 21, 3)
    joints3d_std_mm: Tensor  # (B, 21, 3) std of the label, equal in x and y; 0 = truth
    has_joints3d: Tensor  # (B,) bool
    vertices_mm: Tensor  # (B, V, 3) of this run's hand model
    vertices_std_mm: Tensor  # (B, V, 3) likewise
    has_vertices: Tensor  # (B,) bool
    guess3d_mm: Tensor  # (B, 21, 3) a detector's 3D joints, at the size of its typical hand
    has_guess3d: Tensor  # (B,) bool
    # (B, 1, S, S) uint8, 255 where the hand is visible and not covered; all 255 where unknown.
    hand_mask: Tensor
    has_hand_mask: Tensor  # (B,) bool
    joint_visible: Tensor  # (B, 21) bool
    has_joint_visible: Tensor  # (B, 21) bool
    ray: Tensor  # (B, 2) x / z and y / z of the ray through the crop's centre; 0 where the camera is unknown
    half_side_tan: Tensor  # (B,) half the crop's side over the focal length; 0 where the camera is unknown
    features: Tensor  # (B, N) float16, of a frozen backbone (data/features.py); N is 0 unless they come from a cache

    def __len__(self) -> int:
        return len(self.key)

    def __getitem__(self, rows: Any) -> Batch:
        return Batch(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory, for asynchronous copies to a GPU; called by `DataLoader`."""
        return Batch(*(getattr(self, field.name).pin_memory() for field in fields(self)))

    @staticmethod
    def join(batches: Sequence[Batch]) -> Batch:
        """Concatenate batches with images of the same size."""
        return Batch(*(torch.cat([getattr(b, field.name) for b in batches]) for field in fields(Batch)))

    @staticmethod
    def empty(count: int, size_px: int, vertex_count: int) -> Batch:
        """Return a batch without any known target."""
        return Batch(
            key=torch.zeros(count, dtype=torch.int64),
            image=torch.zeros(count, 3, size_px, size_px, dtype=torch.uint8),
            has_hand=torch.ones(count, dtype=torch.bool),
            joints2d=torch.zeros(count, 21, 2),
            joints2d_std=torch.zeros(count, 21),
            has_joints2d=torch.zeros(count, 21, dtype=torch.bool),
            joints3d_mm=torch.zeros(count, 21, 3),
            joints3d_std_mm=torch.zeros(count, 21, 3),
            has_joints3d=torch.zeros(count, dtype=torch.bool),
            vertices_mm=torch.zeros(count, vertex_count, 3),
            vertices_std_mm=torch.zeros(count, vertex_count, 3),
            has_vertices=torch.zeros(count, dtype=torch.bool),
            guess3d_mm=torch.zeros(count, 21, 3),
            has_guess3d=torch.zeros(count, dtype=torch.bool),
            hand_mask=torch.full((count, 1, size_px, size_px), 255, dtype=torch.uint8),
            has_hand_mask=torch.zeros(count, dtype=torch.bool),
            joint_visible=torch.zeros(count, 21, dtype=torch.bool),
            has_joint_visible=torch.zeros(count, 21, dtype=torch.bool),
            ray=torch.zeros(count, 2),
            half_side_tan=torch.zeros(count),
            features=torch.zeros(count, 0, dtype=torch.float16),
        )


def withhold(batch: Batch, targets: Sequence[Target]) -> Batch:
    """Return the batch with only these targets."""
    nothing = Batch.empty(len(batch), batch.image.shape[-1], batch.vertices_mm.shape[1])
    for target in set(TARGETS) - set(targets):
        values = target if target in ("joints2d", "hand_mask") else f"{target}_mm"
        batch = replace(
            batch, **{name: getattr(nothing, name).to(batch.key.device) for name in (values, f"has_{target}")}
        )
    return batch
