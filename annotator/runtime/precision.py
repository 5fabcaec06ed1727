"""The precision of a network's backbone, the devices that gain by it, and the batch size of CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from annotator.errors import UserError
from annotator.runtime.ray_session import connected

if TYPE_CHECKING:
    import torch

#: Photos per forward pass on a CPU; larger batches are not faster.
CPU_BATCH = 32

#: On synthetic hands the vertices of `default` move by 0.4 mm on average in float16 (median hand 0.2). In bfloat16 it
#: is 7 mm (1.6), because for some hands it changes whether the second look is repeated. int8 is for CPUs.
Precision = Literal["float32", "float16", "bfloat16", "int8"]


def check_precision(precision: str, address: str | None = None) -> None:
    """Check that a job gains by a precision.

    Args:
        precision: one of `Precision`. address: a Ray cluster; None: this machine.

    Raises:
        UserError: there is no such precision, or neither GPUs nor fast instructions for it.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision is {precision!r}, may be {', '.join(get_args(Precision))}")
    if precision == "float32":
        return
    has_gpus = _has_gpus(address)
    if precision == "int8" and has_gpus:
        raise UserError("precision int8 is for CPUs: use float16 on a GPU")
    if precision == "int8" or has_gpus:  # the predictor checks its CPU and checkpoint
        return
    if precision == "float16":
        raise UserError(
            "float16 is several times slower than float32 on CPUs, and there is no GPU: leave out --precision"
        )
    import torch

    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise UserError(
            "this CPU has no instructions for bfloat16, and there is no GPU: leave out --precision"
        )


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a backbone runs in a precision; float32 and int8 leave torch as it is."""
    import torch

    half = precision in ("float16", "bfloat16")
    return torch.autocast(device.type, getattr(torch, precision), enabled=half)


def _has_gpus(address: str | None) -> bool:
    if address is None:
        import torch

        return torch.cuda.is_available()
    with connected(address):
        import ray

        return ray.cluster_resources().get("GPU", 0) > 0
