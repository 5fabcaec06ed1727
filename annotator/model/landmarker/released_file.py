"""Read MediaPipe's hand landmark network from `hand_landmarker.task`, as a start for training.

The bundle is a zip. The network inside is a TensorFlow Lite file with 16-bit weights and its batch norms folded into
its convolutions. The `tflite` package, a flatbuffers schema, reads the file as data and runs nothing of it.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from annotator.errors import UserError
from annotator.hand.model import JOINT_COUNT
from annotator.model.landmarker.bundle import MEMBER, no_landmark_network, read_bundle
from annotator.model.landmarker.network import Landmarker, LandmarkHeads

#: Identifier of TensorFlow Lite files, at byte 4.
IDENTIFIER = b"TFL3"

#: Side of the network's own input; its image landmarks are in pixels of it.
INPUT_PX = 224

#: MediaPipe divides the network's depth by 0.4 (`normalize_z`). Depth then has nearly the scale of x and y: on drawn
#: hands the error after Procrustes is smallest at a factor of 3.0, and 0.1 mm larger at 2.5.
DEPTH_SCALE = 1 / 0.4

#: The heads of `LandmarkHeads` by the names of the file's layers.
HEADS = {
    "conv_landmarks": "image",
    "conv_world_landmarks": "world_mm",
    "conv_handflag": "presence",
    "conv_handedness": "is_right",
}


class _Layer(NamedTuple):
    """A convolution or a linear layer of the file, in torch's layout."""

    name: str
    weight: Tensor  # (O, I / groups, H, W) or (O, I)
    bias: Tensor  # (O,)


def read_released_landmarker(uri: str, crops: Tensor) -> Landmarker:
    """Return MediaPipe's network with batch norms. In evaluation mode it gives MediaPipe's landmarks.

    Args:
        uri: path or URL of `hand_landmarker.task`.
        crops: (N, 3, 224, 224) RGB, 0..1, like those of the training; the batch norms' statistics are measured on
            them. With N = 0 they stay at mean 0 and variance 1: the same function, but in evaluation mode only.

    Raises:
        UserError: `tflite` is not installed, or the file is missing or holds another network.
    """
    layers = _read_layers(uri)
    filters = [layer for layer in layers if layer.weight.ndim == 4]
    linears = {HEADS.get(layer.name, layer.name): layer for layer in layers if layer.weight.ndim == 2}
    with torch.random.fork_rng(devices=[]):
        network = Landmarker().eval()
    modules = list(network.backbone.modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    heads = {name: getattr(network.heads, name) for name in HEADS.values()}
    if len(filters) != len(convolutions) or linears.keys() != heads.keys():
        raise no_landmark_network(uri)
    pairs: list[tuple[nn.Conv2d | nn.Linear, _Layer]] = list(zip(convolutions, filters, strict=True))
    pairs += [(head, linears[name]) for name, head in heads.items()]
    for module, layer in pairs:
        fits = layer.weight.shape == module.weight.shape and layer.bias.shape == module.weight.shape[:1]
        if not (fits and layer.weight.isfinite().all() and layer.bias.isfinite().all()):
            raise no_landmark_network(uri)
    with torch.no_grad():
        for module, layer in pairs:
            module.weight.copy_(layer.weight)
            if module.bias is not None:
                module.bias.copy_(layer.bias)
        for norm, layer in zip(norms, filters, strict=True):
            norm.weight.fill_(math.sqrt(1 + norm.eps))  # the running variance is 1
            norm.bias.copy_(layer.bias)
        _change_units(network.heads)
    if len(crops):
        network.backbone.measure_normalisation(crops)
    return network


def _change_units(heads: LandmarkHeads) -> None:
    """Convert input pixels to crop coordinates, and metres to millimetres, in place."""
    for parameter in heads.image.parameters():
        xyz = parameter.unflatten(0, (JOINT_COUNT, 3))
        xyz.mul_(2 / INPUT_PX)[:, 2].mul_(DEPTH_SCALE)
    heads.image.bias.unflatten(0, (JOINT_COUNT, 3))[:, :2] -= 1
    for parameter in heads.world_mm.parameters():
        parameter.mul_(1000)


def _read_layers(uri: str) -> list[_Layer]:
    """Return the layers of the network in the bundle, in execution order."""
    if find_spec("tflite") is None:
        raise UserError(f"reading '{uri}' needs tflite: pip install 'amvur-annotator[landmarker]'")
    bundle = read_bundle(uri)
    try:
        data = zipfile.ZipFile(io.BytesIO(bundle)).read(MEMBER)
        if data[4:8] != IDENTIFIER:
            raise no_landmark_network(uri)
        return _layers(data)
    except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, RuntimeError) as error:
        raise no_landmark_network(uri) from error
    except (struct.error, ValueError, TypeError, IndexError, AttributeError) as error:
        raise no_landmark_network(uri) from error  # flatbuffers raises any of these at a wrong offset


def _layers(data: bytes) -> list[_Layer]:
    import tflite

    model = tflite.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    stored: dict[int, int] = {}  # the tensor behind each dequantised one
    layers = []
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        kind = model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
        inputs, outputs = operator.InputsAsNumpy().tolist(), operator.OutputsAsNumpy().tolist()
        if kind == tflite.BuiltinOperator.DEQUANTIZE:
            stored[outputs[0]] = inputs[0]
        if kind in (
            tflite.BuiltinOperator.CONV_2D,
            tflite.BuiltinOperator.DEPTHWISE_CONV_2D,
            tflite.BuiltinOperator.FULLY_CONNECTED,
        ):
            weight, bias = (_stored(model, graph, stored.get(i, i)) for i in inputs[1:3])
            if kind == tflite.BuiltinOperator.CONV_2D:  # O, H, W, I
                weight = weight.transpose(0, 3, 1, 2)
            elif kind == tflite.BuiltinOperator.DEPTHWISE_CONV_2D:  # 1, H, W, O
                weight = weight.transpose(3, 0, 1, 2)
            # `model_1/model/conv_landmarks/MatMul_dequantize`
            name = graph.Tensors(inputs[1]).Name().decode().split("/")[-2]
            layers.append(_Layer(name, torch.tensor(weight), torch.tensor(bias)))
    return layers


def _stored(model: Any, graph: Any, number: int) -> NDArray[np.float32]:
    import tflite

    tensor = graph.Tensors(number)
    kinds = {tflite.TensorType.FLOAT16: np.float16, tflite.TensorType.FLOAT32: np.float32}
    if tensor.Type() not in kinds:
        raise ValueError("weights that are not floating-point")
    values = model.Buffers(tensor.Buffer()).DataAsNumpy().view(kinds[tensor.Type()])
    return values.reshape(tensor.ShapeAsNumpy()).astype(np.float32)
