"""Eight-bit convolutions: grids and ranges."""

from __future__ import annotations

import numpy as np
import torch

from annotator.model.backbone import build_backbone
from annotator.model.quantised import (
    best_range,
    grid_step,
    measure_ranges,
    quantised_convolutions,
    round_to_grid,
    rounded,
)


def test_the_grid_is_that_of_torchs_fake_quantisation():
    weight = torch.randn(7, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    step = grid_step(weight).flatten()
    expected = torch.fake_quantize_per_channel_affine(
        weight, step, torch.zeros(7, dtype=torch.int32), 0, -127, 127
    )
    torch.testing.assert_close(round_to_grid(weight), expected)
    torch.testing.assert_close(round_to_grid(expected), expected)


def test_the_gradient_passes_through_the_grid():
    weight = torch.randn(2, 3, 1, 1, requires_grad=True)
    round_to_grid(weight).square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * round_to_grid(weight.detach()))


def test_ranges_hold_zero_and_the_values_of_the_images():
    torch.manual_seed(0)
    backbone = build_backbone("hand_landmark").eval()
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        backbone.measure_normalisation(images)
    backbone.fold_normalisation()
    ranges = measure_ranges(backbone, images)
    assert set(ranges) == set(quantised_convolutions(backbone))
    for low, high in ranges.values():
        zero = torch.zeros(1)
        assert float(rounded(zero, low, high).abs()) < 1e-6
        assert low <= 0 < high
    # The output of a ReLU6 needs no negative level; a projection's does.
    assert ranges["blocks.3.1.conv_dw"][0] == 0 > ranges["blocks.3.1.conv_pw"][0]


def test_a_rare_value_does_not_widen_the_range():
    values = np.random.default_rng(0).normal(0, 1, 20_000).astype(np.float32)
    _, high = best_range(torch.from_numpy(values), -40.0, 40.0)
    assert high < 20
