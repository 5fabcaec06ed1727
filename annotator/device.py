"""Where networks run."""

from __future__ import annotations

import torch

from annotator.errors import UserError


def device_of(name: str | None) -> torch.device:
    """The device of a name such as `cpu`, `cuda` or `cuda:1`; none is a GPU if there is one.

    Raises:
        UserError: there is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise UserError(f"there is no device '{name}' here: give one of {there}") from None
    return device
