"""Pack the output of a frozen backbone into rows of numbers, and back: the features that `cache.py` stores.

A row holds the global feature g and, for networks that sample them, the maps of strides 8, 16 and 32. The shallow map
X is not stored: it is one convolution of the image, and larger than all else. Read-outs and landmarks are layers on
g and the maps, so they are computed again, too.
"""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import torch
from torch import Tensor

from annotator.config import NetworkConfig
from annotator.model.backbone import Backbone, BackboneFeatures

STRIDES = (8, 16, 32)


def samples_maps(config: NetworkConfig) -> bool:
    """Return whether a network reads the backbone's maps of strides 8 to 32, besides g and X."""
    return config.amvur.aligned or config.joint_visibility or config.landmarks


def row_size(backbone: Backbone, size_px: int, maps: bool) -> int:
    """Return the count of numbers per crop of this size."""
    return backbone.feature_dim + maps * sum(_map_sizes(backbone, size_px))


def _map_sizes(backbone: Backbone, size_px: int) -> list[int]:
    return [
        dim * math.ceil(size_px / stride) ** 2
        for dim, stride in zip(backbone.pyramid_dims, STRIDES, strict=True)
    ]


def packed(features: BackboneFeatures, maps: bool) -> Tensor:
    """Return rows (B, N) float16 of a backbone's output."""
    parts = [features.g, *(level.flatten(1) for level in features.pyramid if maps)]
    return torch.cat(parts, 1).half()


def unpacked(rows: Tensor, images: Tensor, backbone: Backbone) -> BackboneFeatures:
    """Return the backbone's output for images (B, 3, S, S) in 0..1 from its rows (B, N)."""
    g, maps = rows.float().split([backbone.feature_dim, rows.shape[1] - backbone.feature_dim], 1)
    pyramid: tuple[Tensor, ...] = ()
    if maps.shape[1]:
        size_px = images.shape[-1]
        edges = [0]
        for size in _map_sizes(backbone, size_px):
            edges.append(edges[-1] + size)
        sides = (math.ceil(size_px / stride) for stride in STRIDES)
        pyramid = tuple(
            maps[:, first:last].unflatten(1, (-1, side, side))
            for (first, last), side in zip(pairwise(edges), sides, strict=True)
        )
    return BackboneFeatures(g, backbone.shallow(images), pyramid)


def digest(backbone: Backbone) -> str:
    """Return a hash of the backbone's weights and statistics."""
    found = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
