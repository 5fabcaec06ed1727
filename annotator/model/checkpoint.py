"""Checkpoints: one safetensors file whose header carries everything else as JSON.

The header's `amvur` entry holds the format version, the network's configuration, the hand model's id, how
far it was trained, and the calibration of its uncertainties. One file can't lose its other half, and nothing
in it can run code.
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
from annotator.model.two_looks import WIDE, TwoLooks, first_look_config, wide_px, without_hands
from annotator.quality.calibration import Calibration, read_calibration
from annotator.storage.files import open_file, write_whole

#: 2: prior-net's hands are bounded, landmarks. 3: is there a hand at all. 4: AMVUR has blocks. 5: a first look.
CHECKPOINT_VERSION = 5

#: The version of a file with a single network: written as before, so that an older amvur reads it.
_SINGLE_VERSION = 4

#: What the names of the first look's tensors begin with; the second look's are those of a single network.
_FIRST_LOOK = "first_look."

#: The oldest version whose networks can still be built: AMVUR was one plain block, its parts named otherwise.
OLDEST_VERSION = 3
_AMVUR_OF_VERSION_3 = {"plain": True, "blocks": 1, "stages": 1, "aligned": False}
_NAMES_OF_VERSION_3 = {
    "amvur.cross.": "amvur.stages.0.0.cross.",
    "amvur.self_attention.": "amvur.stages.0.0.self_attention.",
}

#: The weights that come with the package.
WEIGHTS = Path(__file__).parent.parent / "weights"
SHIPPED = WEIGHTS / "default.safetensors"

#: Checkpoints with names: the fast one, and the accurate one, which looks twice.
NAMES = {"default": SHIPPED, "accurate": WEIGHTS / "accurate.safetensors"}

#: A name that starts a network from its configuration alone: `untrained:NAME`.
UNTRAINED = "untrained:"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself."""

    network: NetworkConfig
    hand_id: str
    trained_steps: int = 0
    calibration: Calibration = field(default_factory=Calibration)
    first_look: NetworkConfig | None = None  # `network` is then the second look

    @property
    def trained(self) -> bool:
        """False for weights that never saw a photo: their hand is the mean hand."""
        return self.trained_steps > 0


@dataclass(frozen=True)
class Checkpoint:
    """A network ready to predict, its hand, and where both come from."""

    network: Network | TwoLooks
    hand: HandModel
    info: CheckpointInfo
    id: str  # hash of the file's bytes

    @property
    def cut_px(self) -> int:
        """Side of the images that the network takes."""
        return wide_px(self.info.network) if self.info.first_look else self.info.network.crop_px

    @property
    def cut_margin(self) -> float:
        """Side of these images over the side of the crop that labels are about."""
        return WIDE if self.info.first_look else 1.0

    def to_bytes(self, half: bool = False) -> bytes:
        """The bytes of the safetensors file; see `save_checkpoint`."""
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
    tensors = {name: tensor.contiguous() for name, tensor in _named_tensors(network).items()}
    if half:
        # Weights. Biases, and what normalisation counts, take no room and are not all of a half's range.
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
    """A network as its configuration starts it (`configs/network/NAME.yaml`): gives the mean hand.

    Raises:
        UserError: no such configuration, or no such hand.
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

    `default` and `accurate` ship with the package (docs/model-card.md). `untrained:NAME` starts from a network
    configuration. `hand` is needed where the checkpoint was made with MANO (`mano:PATH`).

    Raises:
        UserError: no such file, a damaged one, one from a newer version, or one made with another hand model.
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
            "the weights that ship are the open hand's: leave out --hand, or train your own (amvur train --hand)"
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
            network = TwoLooks(first, network.last_look)
        network.last_look.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"checkpoint '{name}': its weights don't fit its own configuration ({reason})"
        ) from None
    return Checkpoint(network.eval(), model, info, _id(data))


def _current_name(key: str) -> str:
    """Return a tensor's name in this version; current names have none of the old beginnings."""
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
    """Parse a checkpoint's header; `name` is for errors.

    Raises:
        UserError: not a safetensors file, cut off, not made by amvur, or made by a newer one.
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
    )


def save_checkpoint(checkpoint: Checkpoint, path: str | Path, half: bool = False) -> None:
    """Write a checkpoint as one file, whole or not at all; with `half` its weights in 16 bits, for half the size."""
    write_whole(str(path), checkpoint.to_bytes(half))


def with_first_look(checkpoint: Checkpoint, first: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose first look is `first`'s network and whose second is `checkpoint`'s.

    Of the first network the side, presence, landmarks and backbone are kept. Calibration and training steps are those
    of `checkpoint`, whose own first look, if it has one, is replaced.

    Raises:
        UserError: the two were made with different hand models, or `first` has two looks itself.
    """
    if not isinstance(first.network, Network):
        raise UserError("the first look must be a single network: give a checkpoint without a first look")
    if first.hand.id != checkpoint.hand.id:
        raise UserError(
            f"the first look was made with hand model {first.hand.id}, the second with {checkpoint.hand.id}: "
            "give two checkpoints of one hand model"
        )
    network = TwoLooks(without_hands(first.network), checkpoint.network.last_look).eval()
    info = replace(checkpoint.info, first_look=first_look_config(first.info.network))
    return Checkpoint(network, checkpoint.hand, info, _id(_to_bytes(network, info)))
