"""Parametric hand models in MANO's layout, and the layer that poses them."""

from __future__ import annotations

from pathlib import Path

from annotator.errors import UserError
from annotator.hand.model import BONES, JOINT_NAMES, HandModel

__all__ = ["BONES", "JOINT_NAMES", "HandModel", "load_hand"]


def load_hand(name: str) -> HandModel:
    """Load the hand model `open`, or MANO from the user's file: `mano:PATH`.

    Raises:
        UserError: any other name, or a file that is not MANO's.
    """
    if name == "open":
        from annotator.hand.open_hand import open_hand

        return open_hand()
    kind, _, path = name.partition(":")
    if kind == "mano" and path:
        from annotator.hand.mano import read_mano

        return read_mano(Path(path))
    raise UserError(f"no hand model '{name}': use 'open' or 'mano:PATH' with the path of MANO_RIGHT.pkl")
