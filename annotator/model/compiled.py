"""Run a backbone on a CPU with OpenVINO: the same numbers as in torch, in two thirds of the time; in int8, in a third.

`torch.fx` lists the backbone's operations, and `_Graph` turns each into OpenVINO's. So `backbone/` stays the only
description of the network. OpenVINO's own converter traces the network too, but takes a second per start.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset1
from openvino import opset13 as op
from torch import Tensor, fx, nn
from torch.nn import functional as F

from annotator.model.backbone.base import Backbone, BackboneFeatures
from annotator.model.backbone.efficientnet import same_padding
from annotator.model.network import Network
from annotator.model.quantised import INPUT_LEVELS, WEIGHT_LEVELS, Ranges, grid_step
from annotator.model.two_looks import TwoLooks


def compile_backbones(network: Network | TwoLooks, ranges: Ranges | None = None) -> None:
    """Let OpenVINO run the backbones of a network with folded batch norms, in place; for prediction on a CPU.

    With `ranges` the convolutions of the hand network run in int8.
    """
    looks = (network.first, network.second) if isinstance(network, TwoLooks) else (network,)
    for look in looks:
        own_ranges = ranges if look is network.hand_network else None
        look.backbone = CompiledBackbone(look.backbone, look.config.crop_px, own_ranges)


class CompiledBackbone(Backbone):
    """A backbone for prediction on a CPU. Its batch norms must be folded."""

    memory_format = torch.contiguous_format

    def __init__(self, backbone: Backbone, crop_px: int, ranges: Ranges | None = None) -> None:
        """Compile for images (B, 3, crop_px, crop_px), on as many threads as torch uses now."""
        nn.Module.__init__(self)  # without constants: the compiled model normalises colours
        self.feature_dim, self.shallow_dim = backbone.feature_dim, backbone.shallow_dim
        self.pyramid_dims, self._first_centre_px = backbone.pyramid_dims, backbone.first_centre_px
        image = op.parameter([-1, 3, crop_px, crop_px], np.float32)
        graph = _Graph(fx.GraphModule(backbone, _Tracer().trace(backbone)), ranges or {})
        g, X, pyramid = graph.run(image)
        model = openvino.Model([g, X, *pyramid], [image], "backbone")
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",  # some CPUs would use bfloat16, which moves vertices by 0.4 mm
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._model = openvino.Core().compile_model(model, "CPU", settings)

    def first_centre_px(self, size_px: int, stride: int) -> float:
        """Return the centre of the first cell of a map, see `Backbone.first_centre_px`."""
        return self._first_centre_px(size_px, stride)

    def forward(self, images: Tensor) -> BackboneFeatures:
        """Return the features of images (B, 3, crop_px, crop_px), see `Backbone.forward`; without gradient."""
        # A request of its own per batch: its memory holds the result.
        request = self._model.create_infer_request()
        request.infer({0: images.contiguous().numpy()}, share_inputs=True)
        g, X, fine, middle, coarse = (
            torch.from_numpy(request.get_output_tensor(k).data) for k in range(len(self._model.outputs))
        )
        return BackboneFeatures(g, X, (fine, middle, coarse))


class _Tracer(fx.Tracer):
    """List a backbone's operations, with convolutions as a whole."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d) or super().is_leaf_module(module, name)

    def path_of_module(self, module: nn.Module) -> str:
        # A slice of a `Sequential` has no path.
        return "" if isinstance(module, nn.Sequential) else super().path_of_module(module)

    def to_bool(self, value: fx.Proxy) -> bool:
        return False  # activations depend on `requires_grad`: no gradient here


def _mean(x: Any, dim: tuple[int, ...], keepdim: bool = False) -> Any:
    return op.reduce_mean(x, op.constant(np.array(dim)), keepdim)


def _max_pool(x: Any, kernel: int, stride: int, padding: int, **_: Any) -> Any:
    return opset1.max_pool(x, [stride] * 2, [padding] * 2, [padding] * 2, [kernel] * 2)


_FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    BackboneFeatures: BackboneFeatures,
    operator.add: op.add,
    operator.sub: op.subtract,
    operator.mul: op.multiply,
    operator.truediv: op.divide,
    F.relu: lambda x, inplace=False: op.relu(x),
    F.relu6: lambda x, inplace=False: op.clamp(x, 0.0, 6.0),
    F.max_pool2d: _max_pool,
    F.silu: lambda x, inplace=False: op.swish(x),
}

_METHODS: dict[str, Callable[..., Any]] = {
    "contiguous": lambda x, memory_format: x,
    "mean": _mean,
    "sigmoid": op.sigmoid,
}


class _Graph(fx.Interpreter):
    """Run a traced backbone on OpenVINO's nodes in place of tensors."""

    def __init__(self, module: fx.GraphModule, ranges: Ranges) -> None:
        super().__init__(module)
        self.ranges = ranges

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, nn.Conv2d):
            return _convolution(module, args[0], self.ranges.get(target))
        assert isinstance(module, nn.Identity), f"no translation of {module}"
        return args[0]

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is getattr:  # of `requires_grad`, see `_Tracer.to_bool`
            return False
        return _FUNCTIONS[target](*args, **kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _METHODS[target](*args, **kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return op.constant(self.fetch_attr(target).detach().numpy())


def _convolution(module: nn.Conv2d, x: Any, input_range: tuple[float, float] | None) -> Any:
    """Return a convolution; with the range of its input, one that OpenVINO runs in int8."""
    before, after = same_padding(module, tuple(x.get_output_partial_shape(0).get_max_shape())[2:])
    groups, detached = module.groups, module.weight.detach().contiguous()
    # (C, ...), or (groups, C / groups, ...) of a grouped convolution.
    shape = detached.shape if groups == 1 else (groups, -1, *detached.shape[1:])
    weight = op.constant(detached.reshape(shape).numpy())
    if input_range is not None:
        ends = [np.float32(end) for end in input_range]
        x = op.fake_quantize(x, *ends, *ends, INPUT_LEVELS)
        largest = (grid_step(detached) * WEIGHT_LEVELS).reshape(shape[0], -1, *[1] * (len(shape) - 2)).numpy()
        weight = op.fake_quantize(weight, -largest, largest, -largest, largest, 2 * WEIGHT_LEVELS + 1)
    convolve = op.convolution if groups == 1 else op.group_convolution
    y = convolve(x, weight, list(module.stride), before, after, [1, 1])
    if module.bias is None:
        return y
    return op.add(y, op.constant(module.bias.detach().numpy().reshape(1, -1, 1, 1)))
