"""The optimizer of a training: weights and their shares, the learning rate per step, the limit of gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from annotator.model.network import Network
from trainer.config import TrainConfig


def new_optimizer(network: Network, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer of all weights that are not frozen; the backbone has its own share of the learning rate."""
    settings = config.optimizer
    backbone = [p for p in network.backbone.parameters() if p.requires_grad]
    of_backbone = set(map(id, network.backbone.parameters()))
    rest = [p for p in network.parameters() if id(p) not in of_backbone and p.requires_grad]
    groups = [{"params": backbone, "share": settings.backbone_share}, {"params": rest, "share": 1.0}]
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate)
    kind = torch.optim.Adam if settings.kind == "adam" else torch.optim.AdamW
    decay = settings.weight_decay if settings.kind == "adamw" else 0.0
    # Fused: a quarter of the time of one operation per tensor, on CPUs too.
    return kind(groups, lr=settings.learning_rate, weight_decay=decay, fused=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate: a linear warm-up, then half a cosine down to a hundredth."""
    settings = config.optimizer
    warm = min((step + 1) / max(settings.warmup_steps, 1), 1.0)
    if settings.schedule == "constant":
        return settings.learning_rate * warm
    done = max(step - settings.warmup_steps, 0) / max(config.steps - settings.warmup_steps, 1)
    return settings.learning_rate * warm * (0.505 + 0.495 * math.cos(math.pi * min(done, 1.0)))


def cosine_rate(peak: float, step: int, steps: int, warmup_steps: int) -> float:
    """Return the learning rate of distillations and inverse kinematics: here the cosine includes the warm-up."""
    warm = min((step + 1) / warmup_steps, 1.0)
    return peak * warm * (0.505 + 0.495 * math.cos(math.pi * step / steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """Set the learning rate of a step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step) * group["share"]


def clip_gradients(network: Network, limit: float) -> Tensor:
    """Limit the norm of all gradients and return it; the head of visibility, apart from all else, has its own limit."""
    head = [] if network.visibility is None else list(network.visibility.parameters())
    of_head = set(map(id, head))
    rest = [parameter for parameter in network.parameters() if id(parameter) not in of_head]
    nn.utils.clip_grad_norm_(head, limit or math.inf)
    return nn.utils.clip_grad_norm_(rest, limit or math.inf)
