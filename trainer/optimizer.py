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
    # Fused: on a CPU a quarter of the time of one operation per tensor.
    return kind(groups, lr=settings.learning_rate, weight_decay=decay, fused=True)


def learning_rate(config: TrainConfig, step: int, cools_from: int | None = None) -> float:
    """Return the learning rate: a linear warm-up, the schedule, and a cool-down, which is a line to a hundredth.

    `cools_from`: number of steps before the cool-down of `config.validation`; None = there is none.
    """
    settings = config.optimizer
    warm = min((step + 1) / max(settings.warmup_steps, 1), 1.0)
    rate = settings.learning_rate * warm
    if settings.schedule == "cosine":
        done = max(step - settings.warmup_steps, 0) / max(config.steps - settings.warmup_steps, 1)
        rate *= 0.505 + 0.495 * math.cos(math.pi * min(done, 1.0))
    if cools_from is not None and step >= cools_from:
        rate *= 1 - 0.99 * min((step + 1 - cools_from) / config.validation.cool_down, 1.0)
    return rate


def cosine_rate(peak: float, step: int, steps: int, warmup_steps: int) -> float:
    """Return the learning rate of distillations and inverse kinematics: here the cosine includes the warm-up."""
    warm = min((step + 1) / warmup_steps, 1.0)
    return peak * warm * (0.505 + 0.495 * math.cos(math.pi * step / steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of a step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def clip_gradients(network: Network, limit: float) -> Tensor:
    """Limit the norm of all gradients and return it; the head of visibility, apart from all else, has its own limit."""
    head = [] if network.visibility is None else list(network.visibility.parameters())
    of_head = set(map(id, head))
    rest = [parameter for parameter in network.parameters() if id(parameter) not in of_head]
    nn.utils.clip_grad_norm_(head, limit or math.inf)
    return nn.utils.clip_grad_norm_(rest, limit or math.inf)
