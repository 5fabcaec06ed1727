"""The device of a network, and its numbers on the CPU."""

from __future__ import annotations

import numpy as np
import torch

from annotator.errors import UserError


def device_of(name: str | None) -> torch.device:
    """Return the device of a name such as `cpu`, `cuda` or `cuda:1`; the default is a GPU if available.

    Raises:
        UserError: the device does not exist, or holds no numbers (`meta`).
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):  # torch raises each of these for some names
        devices = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise UserError(f"there is no device {name!r} here: give one of {devices}") from None
    return device


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor of any device as an array."""
    return tensor.cpu().numpy()
