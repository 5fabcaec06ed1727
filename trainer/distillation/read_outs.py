"""Fit the read-outs of side and presence, which the distillation does not train, to views of a student's crops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotator.model.landmarker.network import Landmarker
from trainer.distillation.config import DistilConfig
from trainer.distillation.examples import LandmarkExamples, drawn_examples, shrunk, view
from trainer.keyed_random import keys

#: Weight decay of the read-outs of side and presence.
READ_OUT_DECAY = 1e-4


def fit_side(student: Landmarker, crops: LandmarkExamples, margin: float, config: DistilConfig) -> float:
    """Fit the side's read-out to views of right hands and their mirror images, and return the share that it gets right.

    The distillation uses right hands only, so the read-out must be refitted for left ones.
    """
    images = crops.image
    parts = [(images, False), (images, True)]
    return _fit_read_out(student, student.heads.is_right, parts, margin, config)


def fit_presence(student: Landmarker, crops: LandmarkExamples, margin: float, config: DistilConfig) -> float:
    """Fit the presence's read-out to upright hands against rotated ones, and return the share that it gets right.

    The distillation uses upright hands only, so the read-out also accepts rotated hands. Only a low presence makes the
    second look try other rotations.
    """
    rotated = torch.stack(
        [torch.rot90(image, 1 + number % 3, (0, 1)) for number, image in enumerate(crops.image)]
    )
    parts = [(crops.image, False), (rotated, False)]
    return _fit_read_out(student, student.heads.presence, parts, margin, config)


def _fit_read_out(
    student: Landmarker,
    read_out: nn.Linear,
    parts: list[tuple[Tensor, bool]],
    margin: float,
    config: DistilConfig,
) -> float:
    """Fit a logistic regression on g: the first part's crops against the second's; a part may be mirrored."""
    found = []
    with torch.no_grad():
        for images, mirrored in parts:
            for rows in torch.arange(len(images)).split(32):
                crops = drawn_examples(images[rows], torch.zeros(len(rows), 21, 3))  # only the images count
                views, _ = view(crops, keys(config.seed + 1, rows), margin, config)
                small = shrunk(views.flip(-1) if mirrored else views, config.crop_px)
                found.append(student.backbone(small).g)
    g, count = torch.cat(found), len(parts[0][0])
    is_first = (torch.arange(len(g)) < count).float()
    optimizer = torch.optim.LBFGS(read_out.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        error = F.binary_cross_entropy_with_logits(read_out(g).squeeze(1), is_first)
        total: Tensor = error + READ_OUT_DECAY * read_out.weight.square().sum() / 2
        total.backward()
        return total

    optimizer.step(cost)
    with torch.no_grad():
        return float(((read_out(g).squeeze(1) > 0) == (is_first > 0.5)).float().mean())
