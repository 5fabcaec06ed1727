"""EfficientNet-B0 and -Lite0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from annotator.model.backbone.base import IMAGENET_MEAN, IMAGENET_STD, Backbone, initialise


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow pads it: the odd pixel goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        (top, left), (bottom, right) = same_padding(self, x.shape[-2:])
        down, across = top + bottom, left + right
        if down % 2 and across % 2 and x.device.type == "cpu" and not torch.is_grad_enabled():
            # A row and a column of zeros before the kernel replace one more pixel after the image. This avoids a copy
            # of the image, a twelfth of a prediction's time. The backward pass would be slower.
            wider = F.pad(self.weight, (1, 0, 1, 0))
            padding = ((down + 1) // 2, (across + 1) // 2)
            return F.conv2d(x, wider, self.bias, self.stride, padding, groups=self.groups)
        return super().forward(F.pad(x, (left, right, top, bottom)))


def same_padding(convolution: nn.Conv2d, size_px: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return how many zeros a convolution adds before and after a map of this height and width: [y, x] each."""
    if not isinstance(convolution, SameConv2d):
        assert not isinstance(convolution.padding, str)
        return list(convolution.padding), list(convolution.padding)
    k, s = convolution.kernel_size[0], convolution.stride[0]
    total = [max((math.ceil(n / s) - 1) * s + k - n, 0) for n in size_px]
    return [n // 2 for n in total], [n - n // 2 for n in total]


Activation = Callable[[Tensor], Tensor]


def _in_place(activation: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Apply the activation, in place where no gradient is needed: nothing else reads a batch norm's output."""
    return activation(x, inplace=not x.requires_grad)


def conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, same: bool = False
) -> nn.Conv2d:
    """Return a convolution without bias that keeps the size up to its stride; `same` pads as TensorFlow does."""
    if same and stride > 1:  # with stride 1 both paddings are the same
        return SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate computed from the mean of all channels (Hu et al., 2018)."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        gate = self.conv_expand(F.silu(self.conv_reduce(x.mean(dim=(2, 3), keepdim=True))))
        return x * gate.sigmoid()


class DepthwiseBlock(nn.Module):
    """EfficientNet's first block: depthwise convolution, squeeze, 1x1 projection, no expansion."""

    def __init__(self, inputs: int, outputs: int, kernel: int, squeeze: bool, activation: Activation) -> None:
        super().__init__()
        self.conv_dw = conv(inputs, inputs, kernel, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.se = SqueezeExcite(inputs, inputs // 4) if squeeze else nn.Identity()
        self.conv_pw = conv(inputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) -> (B, outputs, H, W)."""
        return self.bn2(self.conv_pw(self.se(self.activation(self.bn1(self.conv_dw(x))))))


class InvertedBottleneck(nn.Module):
    """MobileNetV2's block: 1x1 expansion, depthwise convolution, squeeze, 1x1 projection, and a residual."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expansion: int,
        squeeze: bool,
        same: bool,
        activation: Activation,
    ) -> None:
        super().__init__()
        width = expansion * inputs
        self.conv_pw = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv_dw = conv(width, width, kernel, stride, groups=width, same=same)
        self.bn2 = nn.BatchNorm2d(width)
        self.se = SqueezeExcite(width, inputs // 4) if squeeze else nn.Identity()
        self.conv_pwl = conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.activation = activation
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y = self.activation(self.bn1(self.conv_pw(x)))
        y = self.activation(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(self.se(y)))
        return x + y if self.residual else y


#: Batch norm epsilon of networks that come from TensorFlow.
LITE_EPS = 1e-3


class EfficientNet(Backbone):
    """Tan and Le, 2019: B0 (names and shapes of `timm/efficientnet_b0.ra_in1k`) or Lite0.

    Lite0 (`timm/tf_efficientnet_lite0.in1k`) is B0 without squeeze and excitation and with ReLU6 in place of SiLU.
    It comes from TensorFlow and has that library's padding and batch norm epsilon, and colours from -1 to 1.
    """

    feature_dim, shallow_dim, pyramid_dims = 1280, 32, (40, 112, 1280)
    #: kernel, stride, channels, blocks of each stage after the first
    STAGES: tuple[tuple[int, int, int, int], ...] = (
        (3, 2, 24, 2),
        (5, 2, 40, 2),
        (3, 2, 80, 3),
        (5, 1, 112, 3),
        (5, 2, 192, 4),
        (3, 1, 320, 1),
    )
    #: width of the first inverted bottleneck, and of all others, in widths of its input
    first_expansion, expansion = 6, 6

    def __init__(self, lite: bool = False) -> None:
        super().__init__(*(((0.5,) * 3, (0.5,) * 3) if lite else (IMAGENET_MEAN, IMAGENET_STD)))
        self.activation: Activation = F.relu6 if lite else F.silu
        width = self.shallow_dim
        self.conv_stem = conv(3, width, 3, stride=2, same=lite)
        self.bn1 = nn.BatchNorm2d(width)
        first = DepthwiseBlock(width, 16, 3, squeeze=not lite, activation=partial(_in_place, self.activation))
        stages, inputs, expansion = [nn.Sequential(first)], 16, self.first_expansion
        for kernel, stride, outputs, blocks in self.STAGES:
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(
                    InvertedBottleneck(
                        inputs,
                        outputs,
                        kernel,
                        stride if block == 0 else 1,
                        expansion,
                        squeeze=not lite,
                        same=lite,
                        activation=partial(_in_place, self.activation),
                    )
                )
                inputs, expansion = outputs, self.expansion
            stages.append(stage)
        self.blocks = nn.Sequential(*stages)
        self.conv_head = conv(inputs, self.feature_dim, 1)
        self.bn2 = nn.BatchNorm2d(self.feature_dim)
        if lite:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = LITE_EPS
        initialise(self)

    def first_centre_px(self, size_px: int, stride: int) -> float:
        """Return the same for TensorFlow's padding: one pixel more after an even side than before it.

        So each convolution of stride 2 centres cell i on cell 2i + 1 of a map with an even side, 2i with an odd side.
        """
        if not isinstance(self.conv_stem, SameConv2d):
            return super().first_centre_px(size_px, stride)
        centre, step, side = 0.5, 1, size_px
        while step < stride:
            centre += step * (side % 2 == 0)
            step, side = 2 * step, math.ceil(side / 2)
        return centre

    def stem(self, images: Tensor) -> Tensor:
        """Apply the first convolution and batch norm: (B, 3, H, W) -> (B, shallow_dim, H/2, W/2)."""
        return self.bn1(self.conv_stem(images))

    def trunk(self, shallow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, shallow_dim, H/2, W/2) -> 40 channels of H/8, W/8, 112 of half that, `feature_dim` of a quarter."""
        fine = self.blocks[:3](self.activation(shallow))
        middle = self.blocks[3:5](fine)
        return fine, middle, self.head(self.blocks[5:](middle))

    def head(self, coarse: Tensor) -> Tensor:
        """Map the last stage's output to the map that is pooled: (B, C, h, w) -> (B, feature_dim, h, w)."""
        return self.activation(self.bn2(self.conv_head(coarse)))

    def early(self) -> list[nn.Module]:
        """Return the stem and the first two stages."""
        return [self.conv_stem, self.bn1, self.blocks[0], self.blocks[1]]
