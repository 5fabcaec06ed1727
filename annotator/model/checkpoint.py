"""Checkpoints: networks with their hand model and header, made from files and written to them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
import torch

from annotator.config import NetworkConfig, read_config, to_dict
from annotator.errors import UserError
from annotator.hand import HandModel, load_hand
from annotator.model.checkpoint_file import (
    CHECKPOINT_VERSION,
    UNTRAINED,
    CheckpointFile,
    CheckpointInfo,
    file_id,
    read_checkpoint,
)
from annotator.model.network import Network
from annotator.model.pretrained import try_pretrained
from annotator.model.two_looks import TwoLooks, first_look_config, without_hands
from annotator.storage.files import write_atomic

#: The version of a file with a single network, which an older amvur can read.
_SINGLE_VERSION = 4

#: Prefix of the first look's tensors. The second look's tensors have the names of a single network.
_FIRST_LOOK = "first_look."

#: Old names of tensors in files of version 3.
_NAMES_OF_VERSION_3 = {
    "amvur.cross.": "amvur.stages.0.0.cross.",
    "amvur.self_attention.": "amvur.stages.0.0.self_attention.",
}


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
        return self.info.cut_px

    @property
    def cut_margin(self) -> float:
        """Side of these images divided by the side of the labelled crop."""
        return self.info.cut_margin

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
    return Checkpoint(network.eval(), model, info, file_id(_to_bytes(network, info)))


def load_checkpoint(name: str = "default", hand: str | None = None) -> Checkpoint:
    """Load a checkpoint as `read_checkpoint` reads it; `untrained:NAME` starts from a network configuration.

    Raises:
        UserError: as for `read_checkpoint` and `checkpoint_of`.
    """
    if name.startswith(UNTRAINED):
        return untrained(name.removeprefix(UNTRAINED), hand)
    return checkpoint_of(read_checkpoint(name, hand))


def checkpoint_of(file: CheckpointFile) -> Checkpoint:
    """Make the network of a checkpoint file.

    Raises:
        UserError: its weights don't fit its configuration.
    """
    info = file.info
    tensors = {_current_name(key): tensor for key, tensor in safetensors.torch.load(file.data).items()}
    network: Network | TwoLooks = Network(info.network, file.hand)
    try:
        if info.first_look:
            of_first = {key: tensors.pop(key) for key in list(tensors) if key.startswith(_FIRST_LOOK)}
            first = without_hands(Network(info.first_look, file.hand))
            first.load_state_dict({key.removeprefix(_FIRST_LOOK): of_first[key] for key in of_first})
            network = TwoLooks(first, network.hand_network)
        network.hand_network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"checkpoint '{file.name}': its weights don't fit its own configuration ({reason})"
        ) from None
    return Checkpoint(network.eval(), file.hand, info, file.id)


def _current_name(key: str) -> str:
    """Return a tensor's name in this version; current names have none of the old prefixes."""
    for old, new in _NAMES_OF_VERSION_3.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


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
    return Checkpoint(network, checkpoint.hand, info, file_id(_to_bytes(network, info)))
