"""MediaPipe's hand landmark network as a backbone."""

from __future__ import annotations

from torch import Tensor, nn

from annotator.model.backbone.base import initialise
from annotator.model.backbone.efficientnet import LITE_EPS, EfficientNet, conv


class HandLandmark(EfficientNet):
    """The network of MediaPipe's hand landmarks (2021): Lite0 with a narrow stem and a depthwise head.

    It takes colours from 0 to 1. Its last stage ends before the projection, so `head` is a 1x1 expansion and a 3x3
    depthwise convolution. The released file has no batch norms; `landmarker/released_file.py` restores them.
    """

    feature_dim, shallow_dim, pyramid_dims = 1152, 24, (40, 112, 1152)
    STAGES = ((3, 2, 24, 2), (5, 2, 40, 2), (3, 2, 80, 3), (5, 1, 112, 3), (5, 2, 192, 4))
    first_expansion = 4

    def __init__(self) -> None:
        super().__init__(lite=True)
        self.mean.zero_()
        self.std.fill_(1)
        self.conv_dw = conv(self.feature_dim, self.feature_dim, 3, groups=self.feature_dim)
        self.bn3 = nn.BatchNorm2d(self.feature_dim, eps=LITE_EPS)
        initialise(self.conv_dw)

    def head(self, coarse: Tensor) -> Tensor:
        """Map (B, 192, h, w) -> (B, 1152, h, w)."""
        return self.activation(self.bn3(self.conv_dw(super().head(coarse))))
