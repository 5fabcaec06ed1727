"""The open hand: a parametric hand without a licence form, made from CC0 data by `tools/build_open_hand.py`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from annotator.hand.model import HandModel

PATH = Path(__file__).with_name("open_hand.npz")


@cache
def open_hand() -> HandModel:
    """Return the open hand in MANO's layout, metres, read from the package."""
    with np.load(PATH, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return HandModel(name="open", **arrays)
