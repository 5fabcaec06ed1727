"""Layers of tokens compute what torch's own layers do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from annotator.model import attention
from annotator.model.attention import TokenLinear


@pytest.mark.parametrize(("tokens", "width", "out"), [(1, 3, 5), (98, 64, 128), (21, 27, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("convolves", [True, False])
def test_a_layer_of_tokens_is_a_linear_layer_with_its_gradients(
    tokens, width, out, dtype, convolves, monkeypatch
):
    monkeypatch.setattr(attention, "CONVOLVES", convolves)
    torch.manual_seed(0)
    ours, plain = TokenLinear(width, out).to(dtype), nn.Linear(width, out).to(dtype)
    plain.load_state_dict(ours.state_dict())
    # Every second token of a larger tensor: not contiguous.
    x = [
        torch.randn(4, 2 * tokens, width, dtype=dtype, generator=torch.Generator().manual_seed(1))
        for _ in "ab"
    ]
    y = [layer(one.requires_grad_()[:, ::2]) for layer, one in zip((ours, plain), x, strict=True)]
    assert y[0].shape == (4, tokens, out)
    torch.testing.assert_close(y[0], y[1], rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(y[0])
    for one in y:
        (one * weights).sum().backward()
    torch.testing.assert_close(x[0].grad, x[1].grad, rtol=1e-5, atol=1e-5)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad, rtol=1e-4, atol=1e-4)
    # One vector per hand, without tokens.
    torch.testing.assert_close(ours(x[0][:, 0]), plain(x[0][:, 0]))
