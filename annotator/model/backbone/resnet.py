"""ResNet-50."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from annotator.model.backbone.base import IMAGENET_MEAN, IMAGENET_STD, Backbone, initialise


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
        initialise(self)
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
