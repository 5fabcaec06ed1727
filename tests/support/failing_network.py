"""A network that fails on some images."""

from __future__ import annotations

import torch


class FailingNetwork(torch.nn.Module):
    """A network whose `extract` a subclass replaces by one that may fail."""

    def __init__(self, network) -> None:
        super().__init__()
        self.network = network
        self.R, self.is_right, self.hands = network.R, network.is_right, network.hands
