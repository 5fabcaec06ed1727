"""MediaPipe's hand landmark network: a backbone and four linear read-outs, in this project's units. Not in the paper.

Its weights come from MediaPipe's own file (`landmarker_file.py`). With them it is where training starts, and a teacher.
The joints are FreiHAND's, in FreiHAND's order. Lengths are in crop half-sides or millimetres, never in input pixels, so
that a number means the same at every input size.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from annotator.model.backbone import HandLandmark

JOINTS = 21


class LandmarkHand(NamedTuple):
    """Landmarks of the hands in B crops; axes are those of the crop, x right, y down, z forward."""

    image: Tensor  # (B, 21, 3) crop coordinates; z in the same unit, relative to the wrist
    world_mm: Tensor  # (B, 21, 3) of a hand of the network's usual size, origin near the hand's middle
    presence: Tensor  # (B,) logit of a hand against none
    is_right: Tensor  # (B,) logit of a right hand against a left one


class LandmarkHeads(nn.Module):
    """Four linear layers from the global feature (B, feature_dim) to a `LandmarkHand`."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.image = nn.Linear(feature_dim, 3 * JOINTS)
        self.world_mm = nn.Linear(feature_dim, 3 * JOINTS)
        self.presence = nn.Linear(feature_dim, 1)
        self.is_right = nn.Linear(feature_dim, 1)

    def forward(self, g: Tensor) -> LandmarkHand:
        """Return the landmarks, presence and side that `g` (B, feature_dim) holds."""
        return LandmarkHand(
            self.image(g).unflatten(-1, (JOINTS, 3)),
            self.world_mm(g).unflatten(-1, (JOINTS, 3)),
            self.presence(g).squeeze(-1),
            self.is_right(g).squeeze(-1),
        )


class Landmarker(nn.Module):
    """The whole network, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = HandLandmark()
        self.heads = LandmarkHeads(self.backbone.feature_dim)

    def forward(self, images: Tensor) -> LandmarkHand:
        """Return the hands in crops (B, 3, S, S), RGB in 0..1. MediaPipe's own S is 224; others lose accuracy."""
        return self.heads(self.backbone(images).g)
