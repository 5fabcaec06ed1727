"""Checkpoint files, read without torch: a job's driver needs their header and bytes alone.

The header's `amvur` entry holds format version, network configuration, hand model id, number of training steps and
calibration as JSON. A single file can't lose a part, and nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
from safetensors import SafetensorError

from annotator.config import NetworkConfig, from_dict
from annotator.errors import UserError
from annotator.hand import HandModel, load_hand
from annotator.quality.calibration import Calibration, read_calibration
from annotator.storage.files import open_file

#: 2: bounds on prior-net's hands, landmarks. 3: presence of a hand. 4: blocks in AMVUR. 5: a first look.
CHECKPOINT_VERSION = 5

#: The oldest version that can still be read: AMVUR was one plain block, with other tensor names.
OLDEST_VERSION = 3
_AMVUR_OF_VERSION_3 = {"plain": True, "blocks": 1, "stages": 1, "aligned": False}

#: The weights in the package.
WEIGHTS = Path(__file__).parent.parent / "weights"
SHIPPED = WEIGHTS / "default.safetensors"

#: Checkpoints with names: the one with two looks, and the first look alone.
NAMES = {"default": SHIPPED, "fast": WEIGHTS / "fast.safetensors"}

#: Prefix of a network without trained weights, by its configuration: `untrained:NAME`.
UNTRAINED = "untrained:"

#: Side of the images of two looks divided by the side of the labelled crop.
WIDE = 1.5


@dataclass(frozen=True)
class CheckpointInfo:
    """Content of a checkpoint's header."""

    network: NetworkConfig
    hand_id: str
    trained_steps: int = 0
    calibration: Calibration = field(default_factory=Calibration)
    first_look: NetworkConfig | None = None  # `network` is then the second look
    # Of the hand network's backbone, for int8; empty = not measured.
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether the weights were trained; untrained weights give the mean hand."""
        return self.trained_steps > 0

    @property
    def cut_px(self) -> int:
        """Side of the network's input images, pixels."""
        return math.ceil(self.cut_margin * self.network.crop_px)

    @property
    def cut_margin(self) -> float:
        """Side of these images divided by the side of the labelled crop."""
        return WIDE if self.first_look else 1.0


@dataclass(frozen=True)
class CheckpointFile:
    """The bytes of a checkpoint with its header, hand model and id."""

    name: str  # in errors
    data: bytes
    info: CheckpointInfo
    hand: HandModel
    id: str

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in memory, where each number takes four."""
        return sum(4 * math.prod(tensor["shape"]) for _, tensor in safetensors.deserialize(self.data))


def read_checkpoint(name: str = "default", hand: str | None = None) -> CheckpointFile:
    """Read a checkpoint by path or URL (`.safetensors`), or by name.

    `default` and `fast` ship with the package (docs/model-card.md). `hand` is required if the checkpoint was made with
    MANO (`mano:PATH`).

    Raises:
        UserError: the file is missing, damaged, from a newer version, or made with another hand model.
    """
    name = str(NAMES.get(name, name))
    if not name.endswith(".safetensors"):
        raise UserError(
            f"checkpoint '{name}': give a .safetensors file, {', '.join(map(repr, NAMES))} or '{UNTRAINED}NAME' "
            "(a network configuration)"
        )
    try:
        with open_file(name) as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError(f"checkpoint '{name}': there is no such file") from None
    except OSError as error:
        raise UserError(f"checkpoint '{name}': can't be read ({error.strerror or error})") from None
    info = read_info(name, data)
    model = load_hand(hand or _hand_of(name, info))
    if model.id != info.hand_id and Path(name) in NAMES.values():
        raise UserError(
            "the shipped weights are for the open hand: leave out --hand, or train your own (amvur train --hand)"
        )
    if model.id != info.hand_id:
        raise UserError(
            f"checkpoint '{name}' was made with hand model {info.hand_id}, but '{hand or 'open'}' is {model.id}: "
            "give the hand it was made with (--hand)"
        )
    return CheckpointFile(name, data, info, model, file_id(data))


def file_id(data: bytes) -> str:
    """Return a checkpoint's id: the start of the hash of its file."""
    return hashlib.sha256(data).hexdigest()[:12]


def _hand_of(name: str, info: CheckpointInfo) -> str:
    kind = info.hand_id.split("-")[0]
    if kind != "open":
        raise UserError(
            f"checkpoint '{name}' was made with hand model {info.hand_id}: give it with --hand {kind}:PATH"
        )
    return kind


def read_info(name: str, data: bytes) -> CheckpointInfo:
    """Parse a checkpoint's header; `name` appears in errors.

    Raises:
        UserError: the file is not safetensors, truncated, not written by amvur, or written by a newer version.
    """
    try:
        # Checks the whole layout, lengths included, without copying a tensor.
        safetensors.deserialize(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise UserError(f"checkpoint '{name}': damaged or cut off ({error})") from None
    if "amvur" not in metadata:
        raise UserError(f"checkpoint '{name}': safetensors, but not a checkpoint that amvur wrote")
    header = json.loads(metadata["amvur"])
    if header["version"] > CHECKPOINT_VERSION:
        raise UserError(
            f"checkpoint '{name}' has format version {header['version']}, this amvur reads "
            f"up to {CHECKPOINT_VERSION}: install a newer amvur"
        )
    if header["version"] < OLDEST_VERSION:
        raise UserError(
            f"checkpoint '{name}' has format version {header['version']}, this amvur reads {OLDEST_VERSION} to "
            f"{CHECKPOINT_VERSION}: train it again, or label with the amvur that wrote it"
        )
    if header["version"] == 3:
        header["network"]["amvur"] |= _AMVUR_OF_VERSION_3
    first_look = header.get("first_look")
    return CheckpointInfo(
        network=from_dict(NetworkConfig, header["network"], f"checkpoint '{name}': network"),
        first_look=None
        if first_look is None
        else from_dict(NetworkConfig, first_look, f"checkpoint '{name}': first_look"),
        hand_id=header["hand_id"],
        trained_steps=header["trained_steps"],
        calibration=read_calibration(header["calibration"], f"checkpoint '{name}': calibration"),
        ranges={key: (low, high) for key, (low, high) in header.get("ranges", {}).items()},
    )
