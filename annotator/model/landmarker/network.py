"""MediaPipe's hand landmark network: a backbone and four linear read-outs, in this project's units. Not in the paper.

Its weights come from MediaPipe's own file (`released_file.py`). It serves as a start for training and as a teacher.
The joints are FreiHAND's, in FreiHAND's order. Lengths are in crop half-sides or millimetres, never in input pixels,
so that they do not depend on the input size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from annotator.hand.model import JOINT_COUNT
from annotator.model.backbone.hand_landmark import HandLandmark

#: Count of numbers per hand in `LandmarkHand.numbers`.
NUMBERS = 3 * 3 * JOINT_COUNT

#: Crop half-sides: a numerical bound, smaller than any legible hand.
_MIN_SIZE = 1e-3


class LandmarkHand(NamedTuple):
    """Landmarks of the hands in B crops, in crop axes: x right, y down, z forward."""

    image: Tensor  # (B, 21, 3) crop coordinates; z in the same unit, relative to the wrist
    world_mm: Tensor  # (B, 21, 3) of a hand of the network's usual size, origin near the hand's middle
    presence: Tensor  # (B,) logit of a hand against no hand
    is_right: Tensor  # (B,) logit of a right hand against a left one

    def rows(self, rows: Any) -> LandmarkHand:
        """Return some of the hands; `rows` is any tensor index."""
        return LandmarkHand(*(values[rows] for values in self))

    def put(self, rows: Tensor, other: LandmarkHand) -> None:
        """Replace some of the hands, in place."""
        for own, others in zip(self, other, strict=True):
            own[rows] = others

    def normalised(self) -> Tensor:
        """Return the image landmarks without position and size, see `normalised`."""
        return normalised(self.image)

    def numbers(self) -> Tensor:
        """Return the landmarks as input for the rest of a network: (B, NUMBERS), each of magnitude 1.

        They are image landmarks, the same normalised, and world landmarks in decimetres.
        """
        return torch.cat([self.image, self.normalised(), self.world_mm / 100], 1).flatten(1)


def normalised(points: Tensor) -> Tensor:
    """Return hands (B, 21, 3), in any unit, with the wrist at 0 and joints at a distance of 1 from it (RMS)."""
    from_wrist = points - points[:, :1]
    size = from_wrist.square().sum(-1).mean(1).clamp_min(_MIN_SIZE**2).sqrt()
    return from_wrist / size[:, None, None]


class LandmarkHeads(nn.Module):
    """Map the global feature (B, feature_dim) to a `LandmarkHand` by four linear layers."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.image = nn.Linear(feature_dim, 3 * JOINT_COUNT)
        self.world_mm = nn.Linear(feature_dim, 3 * JOINT_COUNT)
        self.presence = nn.Linear(feature_dim, 1)
        self.is_right = nn.Linear(feature_dim, 1)

    @torch.no_grad()
    def start_at(self, image: Tensor, world_mm: Tensor) -> None:
        """Make the layers give these landmarks (21, 3) for any input, and probabilities of 0.5."""
        for parameter in self.parameters():
            parameter.zero_()
        self.image.bias.copy_(image.flatten())
        self.world_mm.bias.copy_(world_mm.flatten())

    def forward(self, g: Tensor) -> LandmarkHand:
        """Return the landmarks, presence and side read from `g` (B, feature_dim)."""
        return LandmarkHand(
            self.image(g).unflatten(-1, (JOINT_COUNT, 3)),
            self.world_mm(g).unflatten(-1, (JOINT_COUNT, 3)),
            self.presence(g).squeeze(-1),
            self.is_right(g).squeeze(-1),
        )


class Landmarker(nn.Module):
    """The complete network, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = HandLandmark()
        self.heads = LandmarkHeads(self.backbone.feature_dim)

    def forward(self, images: Tensor) -> LandmarkHand:
        """Return the hands in crops (B, 3, S, S), RGB in 0..1. MediaPipe's S is 224; other sizes lose accuracy."""
        return self.heads(self.backbone(images).g)
