"""Checkpoints: one safetensors file whose header carries everything else as JSON.

The header's `amvur` entry holds format version, network configuration, hand model id, number of training steps and
calibration. A single file can't lose a part, and nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from annotator.config import NetworkConfig, from_dict, read_config, to_dict
from annotator.errors import UserError
from annotator.hand import HandModel, load_hand
from annotator.model.network import Network
from annotator.model.pretrained import try_pretrained
from annotator.model.quantised import Ranges
from annotator.model.two_looks import WIDE, TwoLooks, first_look_config, wide_px, without_hands
from annotator.quality.calibration import Calibration, read_calibration
from annotator.storage.files import open_file, write_atomic

#: 2: bounds on prior-net's hands, landmarks. 3: presence of a hand. 4: blocks in AMVUR. 5: a first look.
CHECKPOINT_VERSION = 5

#: The version of a file with a single network, which an older amvur can read.
_SINGLE_VERSION = 4

#: Prefix of the first look's tensors. The second look's tensors have the names of a single network.
_FIRST_LOOK = "first_look."

#: The oldest version that can still be read: AMVUR was one plain block, with other tensor names.
OLDEST_VERSION = 3
_AMVUR_OF_VERSION_3 = {"plain": True, "blocks": 1, "stages": 1, "aligned": False}
_NAMES_OF_VERSION_3 = {
    "amvur.cross.": "amvur.stages.0.0.cross.",
    "amvur.self_attention.": "amvur.stages.0.0.self_attention.",
}

#: The weights in the package.
WEIGHTS = Path(__file__).parent.parent / "weights"
SHIPPED = WEIGHTS / "default.safetensors"

#: Checkpoints with names: the one with two looks, and the first look alone.
NAMES = {"default": SHIPPED, "fast": WEIGHTS / "fast.safetensors"}

#: Prefix of a network without trained weights, by its configuration: `untrained:NAME`.
UNTRAINED = "untrained:"


@dataclass(frozen=True)
class CheckpointInfo:
    """Content of a checkpoint's header."""

    network: NetworkConfig
    hand_id: str
    trained_steps: int = 0
    calibration: Calibration = field(default_factory=Calibration)
    first_look: NetworkConfig | None = None  # `network` is then the second look
    ranges: Ranges = field(
        default_factory=dict
    )  # of the hand network's backbone, for int8; empty = not measured

    @property
    def trained(self) -> bool:
        """Whether the weights were trained; untrained weights give the mean hand."""
        return self.trained_steps > 0


@dataclass(frozen=True)
class Checkpoint:
    """A network ready to predict, its hand model, header and id."""

    network: Network | TwoLooks
    hand: HandModel
    info: CheckpointInfo
    id: str  # hash of the file's bytes

    @property
    def cut_px(self) -> int:
        """Side of the network's input images, pixels."""
        return wide_px(self.info.network) if self.info.first_look else self.info.network.crop_px

    @property
    def cut_margin(self) -> float:
        """Side of these images divided by the side of the labelled crop."""
        return WIDE if self.info.first_look else 1.0

    def to_bytes(self, half: bool = False) -> bytes:
        """Return the bytes of the safetensors file; see `save_checkpoint`."""
        return _to_bytes(self.network, self.info, half)


def _to_bytes(network: Network | TwoLooks, info: CheckpointInfo, half: bool = False) -> bytes:
    header = {
        "version": CHECKPOINT_VERSION if info.first_look else _SINGLE_VERSION,
        "network": to_dict(info.network),
        "hand_id": info.hand_id,
        "trained_steps": info.trained_steps,
        "calibration": asdict(info.calibration),
    }
    if info.first_look:
        header["first_look"] = to_dict(info.first_look)
    if info.ranges:
        header["ranges"] = dict(info.ranges)
    tensors = {name: tensor.contiguous() for name, tensor in _named_tensors(network).items()}
    if half:
        # Weights only. Biases and normalisation statistics are small, and some exceed the range of 16 bits.
        tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    return safetensors.torch.save(tensors, metadata={"amvur": json.dumps(header, sort_keys=True)})


def _named_tensors(network: Network | TwoLooks) -> dict[str, torch.Tensor]:
    """Return all weights by their names in the file."""
    if isinstance(network, Network):
        return network.state_dict()
    first = {_FIRST_LOOK + name: tensor for name, tensor in network.first.state_dict().items()}
    return network.second.state_dict() | first


def _id(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def untrained(name: str, hand: str | None = None) -> Checkpoint:
    """Return an untrained network by its configuration (`configs/network/NAME.yaml`); it predicts the mean hand.

    Raises:
        UserError: unknown configuration or hand.
    """
    config = read_config(NetworkConfig, "network", name)
    model = load_hand(hand or "open")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = Network(config, model)
    if config.imagenet:
        try_pretrained(network.backbone, config.backbone)
    info = CheckpointInfo(config, model.id)
    return Checkpoint(network.eval(), model, info, _id(_to_bytes(network, info)))


def load_checkpoint(name: str = "default", hand: str | None = None) -> Checkpoint:
    """Load a checkpoint by path or URL (`.safetensors`), or by name.

    `default` and `fast` ship with the package (docs/model-card.md). `untrained:NAME` starts from a network
    configuration. `hand` is required if the checkpoint was made with MANO (`mano:PATH`).

    Raises:
        UserError: the file is missing, damaged, from a newer version, or made with another hand model.
    """
    name = str(NAMES.get(name, name))
    if name.startswith(UNTRAINED):
        return untrained(name.removeprefix(UNTRAINED), hand)
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
    tensors = {_current_name(key): tensor for key, tensor in safetensors.torch.load(data).items()}
    network: Network | TwoLooks = Network(info.network, model)
    try:
        if info.first_look:
            of_first = {key: tensors.pop(key) for key in list(tensors) if key.startswith(_FIRST_LOOK)}
            first = without_hands(Network(info.first_look, model))
            first.load_state_dict({key.removeprefix(_FIRST_LOOK): of_first[key] for key in of_first})
            network = TwoLooks(first, network.hand_network)
        network.hand_network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"checkpoint '{name}': its weights don't fit its own configuration ({reason})"
        ) from None
    return Checkpoint(network.eval(), model, info, _id(data))


def _current_name(key: str) -> str:
    """Return a tensor's name in this version; current names have none of the old prefixes."""
    for old, new in _NAMES_OF_VERSION_3.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


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


def save_checkpoint(checkpoint: Checkpoint, path: str | Path, half: bool = False) -> None:
    """Write a checkpoint as one file, atomically; with `half` weights have 16 bits, for half the size."""
    write_atomic(str(path), checkpoint.to_bytes(half))


def with_first_look(checkpoint: Checkpoint, first: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose first look is `first`'s network and whose second look is `checkpoint`'s.

    The first network keeps its backbone, landmarks, side and presence. Calibration and training steps come from
    `checkpoint`. A first look that `checkpoint` already has is replaced.

    Raises:
        UserError: the two were made with different hand models, or `first` itself has two looks.
    """
    if not isinstance(first.network, Network):
        raise UserError("the first look must be a single network: give a checkpoint without a first look")
    if first.hand.id != checkpoint.hand.id:
        raise UserError(
            f"the first look was made with hand model {first.hand.id}, the second with {checkpoint.hand.id}: "
            "give two checkpoints of one hand model"
        )
    network = TwoLooks(without_hands(first.network), checkpoint.network.hand_network).eval()
    info = replace(checkpoint.info, first_look=first_look_config(first.info.network))
    return Checkpoint(network, checkpoint.hand, info, _id(_to_bytes(network, info)))
