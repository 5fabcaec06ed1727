"""The convolutional backbones in plain torch: ResNet-50, EfficientNet-B0 and -Lite0, MediaPipe's hand landmark network.

Parameter names and shapes match the public timm weights, so these load unchanged. `landmarker_file.py` reads
MediaPipe's. No library replaces this file: `timm` needs torchvision, which does not import with every CPU build of
torch. The ResNet and EfficientNet classes of `transformers` delay the start of every process by 5 s (7.0 s, where
torch alone takes 2.0 s and this file 0.2 s more). They are two files of 858 lines; this one has under 500.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from annotator.errors import UserError

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
        padding and stride 2 centres its cell i on cell 2i of the previous map, so the first is on pixel 0.
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


class Bottleneck(nn.Module):
    """ResNet's residual block of 1x1, 3x3 and 1x1 convolutions; the 3x3 one carries the stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) -> (B, 4 * width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x), inplace=True)


class ResNet50(Backbone):
    """He et al., 2016, strides in the 3x3 convolutions; names and shapes of `timm/resnet50.a1_in1k`."""

    feature_dim, shallow_dim, pyramid_dims = 2048, 64, (512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._layer(64, 64, stride=1, blocks=3)
        self.layer2 = self._layer(256, 128, stride=2, blocks=4)
        self.layer3 = self._layer(512, 256, stride=2, blocks=6)
        self.layer4 = self._layer(1024, 512, stride=2, blocks=3)
        _initialise(self)
        for module in self.modules():
            if isinstance(
                module, Bottleneck
            ):  # each block starts as the identity, which trains more steadily
                nn.init.zeros_(module.bn3.weight)

    @staticmethod
    def _layer(inputs: int, width: int, stride: int, blocks: int) -> nn.Sequential:
        first = Bottleneck(inputs, width, stride)
        return nn.Sequential(first, *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)))

    def stem(self, images: Tensor) -> Tensor:
        """Apply the first convolution and batch norm: (B, 3, H, W) -> (B, 64, H/2, W/2)."""
        return self.bn1(self.conv1(images))

    def trunk(self, shallow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, 64, H/2, W/2) -> 512 channels of H/8, W/8, 1024 of half that, 2048 of a quarter."""
        x = F.max_pool2d(F.relu(shallow), 3, stride=2, padding=1)
        fine = self.layer2(self.layer1(x))
        middle = self.layer3(fine)
        return fine, middle, self.layer4(middle)

    def early(self) -> list[nn.Module]:
        """Return the stem and the first layer."""
        return [self.conv1, self.bn1, self.layer1]


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


def _in_place(activation: Callable[..., Tensor]) -> Activation:
    """Return the activation, in place where no gradient is needed: nothing else reads a batch norm's output."""
    return lambda x: activation(x, inplace=not x.requires_grad)


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, same: bool = False
) -> nn.Conv2d:
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
        self.conv_dw = _conv(inputs, inputs, kernel, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.se = SqueezeExcite(inputs, inputs // 4) if squeeze else nn.Identity()
        self.conv_pw = _conv(inputs, outputs, 1)
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
        self.conv_pw = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv_dw = _conv(width, width, kernel, stride, groups=width, same=same)
        self.bn2 = nn.BatchNorm2d(width)
        self.se = SqueezeExcite(width, inputs // 4) if squeeze else nn.Identity()
        self.conv_pwl = _conv(width, outputs, 1)
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
        self.conv_stem = _conv(3, width, 3, stride=2, same=lite)
        self.bn1 = nn.BatchNorm2d(width)
        first = DepthwiseBlock(width, 16, 3, squeeze=not lite, activation=_in_place(self.activation))
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
                        activation=_in_place(self.activation),
                    )
                )
                inputs, expansion = outputs, self.expansion
            stages.append(stage)
        self.blocks = nn.Sequential(*stages)
        self.conv_head = _conv(inputs, self.feature_dim, 1)
        self.bn2 = nn.BatchNorm2d(self.feature_dim)
        if lite:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = LITE_EPS
        _initialise(self)

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


class HandLandmark(EfficientNet):
    """The network of MediaPipe's hand landmarks (2021): Lite0 with a narrow stem and a depthwise head.

    It takes colours from 0 to 1. Its last stage ends before the projection, so `head` is a 1x1 expansion and a 3x3
    depthwise convolution. The released file has no batch norms; `landmarker_file.py` restores them.
    """

    feature_dim, shallow_dim, pyramid_dims = 1152, 24, (40, 112, 1152)
    STAGES = ((3, 2, 24, 2), (5, 2, 40, 2), (3, 2, 80, 3), (5, 1, 112, 3), (5, 2, 192, 4))
    first_expansion = 4

    def __init__(self) -> None:
        super().__init__(lite=True)
        self.mean.zero_()
        self.std.fill_(1)
        self.conv_dw = _conv(self.feature_dim, self.feature_dim, 3, groups=self.feature_dim)
        self.bn3 = nn.BatchNorm2d(self.feature_dim, eps=LITE_EPS)
        _initialise(self.conv_dw)

    def head(self, coarse: Tensor) -> Tensor:
        """Map (B, 192, h, w) -> (B, 1152, h, w)."""
        return self.activation(self.bn3(self.conv_dw(super().head(coarse))))


def _initialise(backbone: nn.Module) -> None:
    """Set random weights after He et al., 2015 (fan-out), from torch's global generator."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            # torch's kaiming_normal_ counts every group, which makes weights of depthwise convolutions too small.
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


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
