"""The convolutional backbones in plain torch: ResNet-50, EfficientNet-B0 and -Lite0, MediaPipe's hand landmark network.

Parameter names and shapes match the public timm weights, so these load unchanged. `landmarker/released_file.py` reads
MediaPipe's. No library replaces these files: `timm` needs torchvision, which does not import with every CPU build of
torch. The ResNet and EfficientNet classes of `transformers` delay the start of every process by 5 s. They take 7.0 s,
torch alone 2.0 s, and these files 0.2 s more. They are two files of 858 lines; these have under 550.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from annotator.errors import UserError
from annotator.model.backbone.base import Backbone, BackboneFeatures
from annotator.model.backbone.efficientnet import EfficientNet
from annotator.model.backbone.hand_landmark import HandLandmark
from annotator.model.backbone.resnet import ResNet50

__all__ = ["BACKBONES", "Backbone", "BackboneFeatures", "build_backbone"]

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "resnet50": ResNet50,
    "efficientnet_b0": EfficientNet,
    "efficientnet_lite0": partial(EfficientNet, lite=True),
    "hand_landmark": HandLandmark,
}


def build_backbone(name: str) -> Backbone:
    """Return the backbone of that name, with random weights from torch's global generator.

    Raises:
        UserError: unknown name.
    """
    if name not in BACKBONES:
        raise UserError(f"unknown backbone '{name}': use one of {', '.join(BACKBONES)}")
    return BACKBONES[name]()
