"""Save and load a distilled landmark network (`trainer/distillation/`): a start for training, like a `.task` file."""

from __future__ import annotations

import json

import safetensors.torch
from safetensors import SafetensorError

from annotator.errors import UserError, first_line
from annotator.model.landmarker.network import Landmarker
from annotator.storage.files import read_if_exists

#: Metadata key of such a file; its value is the side of the crops in its training, pixels.
KEY = "amvur_landmarker"


def distilled_landmarker_bytes(landmarker: Landmarker, crop_px: int) -> bytes:
    """Return the safetensors file, with weights in 16 bits."""
    tensors = {
        name: (tensor.half() if tensor.ndim > 1 else tensor).contiguous()
        for name, tensor in landmarker.state_dict().items()
    }
    return safetensors.torch.save(tensors, metadata={KEY: str(crop_px)})


def is_distilled_landmarker(place: str) -> bool:
    """Return whether a path or URL is such a file, by its header."""
    data = read_if_exists(place) if place.endswith(".safetensors") else None
    if not data or len(data) < 8:
        return False
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except ValueError:
        return False
    return KEY in header.get("__metadata__", {})


def load_distilled_landmarker(place: str) -> Landmarker:
    """Load a network from a file with `distilled_landmarker_bytes`.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    data = read_if_exists(place)
    landmarker = Landmarker()
    try:
        tensors = safetensors.torch.load(data or b"")
        landmarker.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (SafetensorError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(
            f"'{place}' is not a landmark network that tools/landmarker.py wrote: {reason}"
        ) from None
    return landmarker.eval()
