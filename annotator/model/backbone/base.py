"""The base of the backbones: features, the positions of their cells, and batch norms folded, measured and restored."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

#: Mean and std of the colours of ImageNet.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BackboneFeatures(NamedTuple):
    """Output of a backbone for B crops."""

    g: Tensor  # (B, feature_dim), pooled over the image, the last layer before a classifier
    X: Tensor  # (B, shallow_dim, H/2, W/2), see `Backbone.forward`
    pyramid: tuple[Tensor, ...]  # last maps of strides 8, 16, 32; `pyramid_dims` channels


class Backbone(nn.Module):
    """Base class of the backbones: turn crops into a global feature and feature maps.

    Subclasses set `feature_dim`, `shallow_dim` and `pyramid_dims` and implement `stem` and `trunk`. Colours are
    normalised here, because the constants depend on the pretrained weights and not on the photos. They are not saved.
    """

    feature_dim: int
    shallow_dim: int
    pyramid_dims: tuple[int, int, int]
    memory_format = torch.channels_last  # of images that need no copy
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def stem(self, images: Tensor) -> Tensor:
        """Apply the first convolution and its batch norm: (B, 3, H, W) normalised -> (B, shallow_dim, H/2, W/2)."""
        raise NotImplementedError

    def trunk(self, shallow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply everything from the first activation to the last: return the maps of strides 8, 16 and 32."""
        raise NotImplementedError

    def early(self) -> list[nn.Module]:
        """Return the layers before stride 8. They detect edges and colours, so ImageNet weights suit hands, too."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> BackboneFeatures:
        """Return the global feature `g` and shallow feature map `X` of a batch of crops (paper sections 3.4 and 4).

        Args:
            images: (B, 3, H, W) RGB, float, 0..1. Any size of at least 32; odd halves round up.

        Returns:
            `BackboneFeatures`. X is the first convolution, after its batch norm, before its activation:
                scaled to about 1, yet still linear in the pixels, so that no colour is cut off. With Lite0's
                ImageNet weights a linear fit recovers colours within 1.5 grey levels (rms); after the
                activation, within 7.8. Pixel centres are at half integers. Cell i is centred on pixel coordinate
                2i + 0.5 (with TensorFlow's padding, at even sizes: 2i + 1.5), but its own middle is 2i + 1.
                Memory layout: channels last.
        """
        shallow = self.shallow(images)
        pyramid = self.trunk(shallow)
        return BackboneFeatures(pyramid[-1].mean(dim=(2, 3)), shallow, pyramid)

    def shallow(self, images: Tensor) -> Tensor:
        """Return X alone, see `forward`."""
        # Channels last in memory: 8 to 15 % faster forward on two cores, 13 to 28 % in training.
        return self.stem(((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last))

    def first_centre_px(self, size_px: int, stride: int) -> float:
        """Return the centre of the first cell of a map of this stride, along a side of `size_px` pixels.

        The unit is pixels, with pixel centres at half integers. Cell i is centred `stride * i` further on. The
        centre is that of the cell's receptive field, ignoring the photo's edge. A kernel of 2p + 1 with p pixels of
        padding and stride 2 centres its cell i on cell 2i of the previous map. So the first is on pixel 0.
        """
        return 0.5

    def in_map(self, points: Tensor, size_px: tuple[int, int], stride: int) -> Tensor:
        """Convert crop points (..., 2) to `grid_sample` coordinates of a map of this stride.

        Args:
            points: x, y, crop coordinates -1..1.
            size_px: height and width of the crops that the map was computed from.
            stride: 2 (X), 8, 16 or 32.

        Returns:
            (..., 2), for `align_corners=False`, where each cell is centred in its share of the map.
        """
        height, width = size_px
        first = points.new_tensor([self.first_centre_px(width, stride), self.first_centre_px(height, stride)])
        cells = points.new_tensor([math.ceil(width / stride), math.ceil(height / stride)])
        index = ((points + 1) / 2 * points.new_tensor([width, height]) - first) / stride
        return (2 * index + 1) / cells - 1

    def fold_normalisation(self) -> None:
        """Fold every batch norm into the convolution before it, in place: for prediction only. 10 % faster on CPUs.

        Layers are matched by timm's names: `bn2` follows the second convolution of a block, and so on.
        """
        for block in self.modules():
            for conv, norm in _normalised(block):
                folded = fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm))
                setattr(block, conv, folded.to(memory_format=torch.channels_last))
                setattr(block, norm, nn.Identity())

    @torch.no_grad()
    def take_folded(self, folded: Backbone) -> None:
        """Take the weights of the same backbone with folded batch norms; the own norms then only add the biases."""
        for name, block in self.named_modules():
            for conv, norm in _normalised(block):
                taken = folded.get_submodule(f"{name}.{conv}".lstrip("."))
                assert isinstance(taken, nn.Conv2d) and taken.bias is not None
                getattr(block, conv).weight.copy_(taken.weight)
                own = getattr(block, norm)
                own.running_mean.zero_()
                own.running_var.fill_(1 - own.eps)
                own.weight.fill_(1)
                own.bias.copy_(taken.bias)

    @torch.no_grad()
    def measure_normalisation(self, images: Tensor) -> None:
        """Set every batch norm's statistics to those of these images, and adapt its weight and bias to compensate.

        In evaluation mode the function stays the same except for rounding. Training mode, which normalises by each
        batch, then starts from nearly the same function too.

        Args:
            images: (N, 3, H, W) RGB, float, 0..1. A hundred crops like those of the training are enough.
        """
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        moments = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

        def add(norm: nn.Module, inputs: tuple[Tensor]) -> None:
            values = inputs[0].double()
            count = torch.full_like(values[0, :, 0, 0], values.numel() / values.shape[1])
            sums = [count, values.sum((0, 2, 3)), values.square().sum((0, 2, 3))]
            moments[norm] += torch.stack(sums).to("cpu")  # type: ignore[index]

        hooks = [norm.register_forward_pre_hook(add) for norm in norms]
        was_training = self.training
        self.eval()
        for part in images.split(16):
            self(part)
        self.train(was_training)
        for hook in hooks:
            hook.remove()
        for norm, (count, total, squares) in moments.items():
            mean = (total / count).to(norm.weight)
            var = (squares / count - (total / count) ** 2).clamp_min(0).to(norm.weight)
            assert norm.running_mean is not None and norm.running_var is not None
            slope = norm.weight / (norm.running_var + norm.eps).sqrt()
            norm.bias.add_(slope * (mean - norm.running_mean))
            norm.weight.copy_(slope * (var + norm.eps).sqrt())
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)


def _normalised(block: nn.Module) -> list[tuple[str, str]]:
    """Return the names of a module's own convolutions that a batch norm follows, each with that of the norm."""
    convolutions = [name for name, child in block.named_children() if isinstance(child, nn.Conv2d)]
    norms = [name for name, child in block.named_children() if isinstance(child, nn.BatchNorm2d)]
    if isinstance(block, nn.Sequential):  # ResNet's downsampling: a convolution, a norm
        return [("0", "1")] if norms else []
    return list(zip(convolutions, norms, strict=True)) if norms else []


def initialise(backbone: nn.Module) -> None:
    """Set random weights after He et al., 2015 (fan-out), from torch's global generator."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            # torch's kaiming_normal_ counts every group, which makes weights of depthwise convolutions too small.
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
