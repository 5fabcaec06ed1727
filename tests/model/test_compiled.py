"""Backbones that OpenVINO runs against the same backbones in torch."""

from __future__ import annotations

import pytest
import torch

from annotator.model.backbone import build_backbone
from annotator.model.compiled import CompiledBackbone
from annotator.model.quantised import measure_ranges, quantised_convolutions, round_to_grid, rounded
from annotator.predictor import load


def folded(name: str, size_px: int) -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        backbone.measure_normalisation(torch.rand(4, 3, size_px, size_px))
    backbone.fold_normalisation()
    return backbone


@pytest.mark.parametrize(
    ("name", "size_px"),
    [
        ("hand_landmark", 64),
        ("hand_landmark", 75),  # TensorFlow's padding depends on whether a side is odd
        ("efficientnet_lite0", 96),
        ("efficientnet_b0", 64),
        ("resnet50", 64),
    ],
)
@torch.inference_mode()
def test_all_outputs_are_torchs(name, size_px):
    backbone = folded(name, size_px)
    compiled = CompiledBackbone(backbone, size_px)
    for count in (1, 3):
        images = torch.rand(count, 3, size_px, size_px).contiguous(memory_format=torch.channels_last)
        ours, theirs = compiled(images), backbone(images)
        for mine, expected in zip(
            (ours.g, ours.X, *ours.pyramid), (theirs.g, theirs.X, *theirs.pyramid), strict=True
        ):
            scale = float(expected.abs().max())
            torch.testing.assert_close(mine / scale, expected / scale, rtol=0, atol=1e-5)
    points = torch.rand(2, 5, 2)
    torch.testing.assert_close(
        compiled.in_map(points, (size_px, size_px), 8), backbone.in_map(points, (size_px, size_px), 8)
    )


@torch.inference_mode()
def test_results_of_earlier_batches_stay():
    compiled = CompiledBackbone(folded("hand_landmark", 64), 64)
    first = compiled(torch.zeros(2, 3, 64, 64))
    kept = first.g.clone()
    compiled(torch.ones(2, 3, 64, 64))
    torch.testing.assert_close(first.g, kept, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="int8 needs a CPU with VNNI")
@torch.inference_mode()
def test_int8_rounds_weights_and_inputs_and_nothing_else():
    """The second implementation rounds in torch, with hooks, and convolves in float32."""
    backbone = folded("hand_landmark", 64)
    images = torch.rand(4, 3, 64, 64)
    ranges = measure_ranges(backbone, images)
    compiled = CompiledBackbone(backbone, 64, ranges)(images)
    plain = backbone(images)
    for name, convolution in quantised_convolutions(backbone).items():
        convolution.weight.copy_(round_to_grid(convolution.weight))
        convolution.register_forward_pre_hook(lambda _, inputs, ends=ranges[name]: (rounded(*inputs, *ends),))
    emulated = backbone(images)
    for mine, expected, exact in zip(
        (compiled.g, *compiled.pyramid),
        (emulated.g, *emulated.pyramid),
        (plain.g, *plain.pyramid),
        strict=True,
    ):
        # A value near the middle of two levels may round either way, and so changes later ones.
        error, rounding = (mine - expected).abs().mean(), (exact - expected).abs().mean()
        assert float(rounding) > 0
        assert float(error) < 0.6 * float(rounding)


@pytest.mark.slow
def test_a_predictor_labels_like_torch(photos):
    paths = sorted(map(str, photos.rglob("*.jpg")))[:8]
    compiled, plain = load("default"), load("default", precision="bfloat16")
    plain.precision = "float32"  # loaded without OpenVINO, and no cast to bfloat16
    for ours, theirs in zip(compiled.predict(paths), plain.predict(paths), strict=True):
        torch.testing.assert_close(
            torch.tensor(ours["vertices_mm"]), torch.tensor(theirs["vertices_mm"]), rtol=0, atol=2e-2
        )
