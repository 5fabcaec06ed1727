"""The state of a training run between two steps, as one safetensors file.

OUT/config.json                              the configuration of the run
OUT/checkpoints/step-*.safetensors           weights, running mean and optimizer to resume from; the newest few
OUT/model.safetensors                        the running mean of the weights, as `annotate` loads it
OUT/metrics.jsonl, tensorboard/, pictures/   the log

No random state is stored: all randomness follows from the seed and the step number.
"""

from __future__ import annotations

import copy
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from annotator.config import NetworkConfig, from_dict, to_dict
from annotator.errors import UserError
from annotator.hand.model import HandModel
from annotator.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    with_first_look,
)
from annotator.model.checkpoint_file import CheckpointInfo
from annotator.model.network import Network
from annotator.model.two_looks import TwoLooks
from annotator.storage.files import join, names_in, read_if_exists, remove_file, write_atomic
from trainer.config import TrainConfig

_NAME = re.compile(r"step-(\d{8})\.safetensors")

#: Version of the state format; changes when older states would be misread.
STATE_VERSION = 3

#: Settings that may differ when a run resumes, because they do not affect past steps.
FREE = ("steps", "loaders", "checkpoint_every", "keep", "log_every", "pictures_every", "compile")

#: The trained network in the run's folder.
MODEL_FILE = "model.safetensors"


@dataclass
class TrainingState:
    """A network in training, its running mean, its optimizer and the number of steps taken."""

    network: Network
    mean: Network | None  # running mean of the weights
    optimizer: torch.optim.Optimizer
    step: int = 0

    @property
    def best(self) -> Network:
        """Return the weights for prediction."""
        return self.network if self.mean is None else self.mean

    def update_mean(self, decay: float) -> None:
        """Update the running mean of the weights, if the training keeps one."""
        if self._running_mean is not None:
            self._running_mean.update(decay, self.step)

    @cached_property
    def _running_mean(self) -> RunningMean | None:
        return None if self.mean is None else RunningMean(self.mean, self.network)

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state as tensors by name."""
        named = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.mean is not None:
            named |= {f"mean.{k}": v for k, v in self.mean.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                named[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore the state from `tensors` after `step` steps."""
        self.step = step
        _load(self.network, tensors, "network.")
        if self.mean is not None:
            _load(self.mean, tensors, "mean.")
        parameters = dict(self.network.named_parameters())
        for name, tensor in tensors.items():
            if not name.startswith("optimizer."):
                continue
            parameter_name, key = name.removeprefix("optimizer.").rsplit(".", 1)
            parameter = parameters[parameter_name]
            self.optimizer.state[parameter][key] = tensor.to(parameter.device)


class RunningMean:
    """The running mean of a network's weights, kept in a network of the same kind."""

    def __init__(self, mean: nn.Module, network: nn.Module) -> None:
        """Find the tensors that training changes; frozen weights are left as they are in `mean`."""
        new, old = network.state_dict(), mean.state_dict()
        frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
        pairs = [(old[name], new[name]) for name in old.keys() - frozen]
        self._floats = [pair for pair in pairs if pair[0].dtype.is_floating_point]
        self._counts = [pair for pair in pairs if not pair[0].dtype.is_floating_point]

    @torch.no_grad()
    def update(self, decay: float, step: int) -> None:
        """Update the mean after a step, faster in the first steps."""
        decay = min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([old for old, _ in self._floats], [new for _, new in self._floats], 1 - decay)
        for old, new in self._counts:
            old.copy_(new)


def _load(network: Network, tensors: dict[str, Tensor], prefix: str) -> None:
    network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def new_state(network: Network, optimizer: torch.optim.Optimizer, config: TrainConfig) -> TrainingState:
    """Return the state before the first step."""
    mean = copy.deepcopy(network).eval().requires_grad_(False) if config.optimizer.ema else None
    return TrainingState(network, mean, optimizer)


def save_state(
    state: TrainingState,
    out: str,
    config: TrainConfig,
    hand: HandModel,
    first_look: Checkpoint | None = None,
) -> None:
    """Write the model for `annotate`, then the state, then delete all but the newest states.

    The order matters: a run with its last state is finished, and must have its model. With `first_look` the trained
    network becomes the second look after it.
    """
    header = {"version": STATE_VERSION, "step": state.step, "hand_id": hand.id}
    data = safetensors.torch.save(state.tensors(), metadata={"amvur-training": json.dumps(header)})
    folder = join(out, "checkpoints")
    checkpoint = as_checkpoint(state, config.network, hand)
    if first_look is not None:
        checkpoint = with_first_look(checkpoint, first_look)
    save_checkpoint(checkpoint, join(out, MODEL_FILE))
    write_atomic(join(folder, f"step-{state.step:08d}.safetensors"), data)
    for name in saved_states(out)[: -config.keep]:
        remove_file(join(folder, name))


def as_checkpoint(state: TrainingState, network: NetworkConfig, hand: HandModel) -> Checkpoint:
    """Return the checkpoint that `annotate` loads."""
    info = CheckpointInfo(network, hand.id, trained_steps=state.step)
    return Checkpoint(state.best, hand, info, id="")


def first_look_of(place: str, hand: str) -> Checkpoint | None:
    """Return the first look of a checkpoint as a checkpoint of its own; None if it has a single network.

    Args:
        place: as `load_checkpoint` takes it. hand: likewise.
    """
    loaded = load_checkpoint(place, hand)
    if not isinstance(loaded.network, TwoLooks) or loaded.info.first_look is None:
        return None
    info = CheckpointInfo(loaded.info.first_look, loaded.hand.id, loaded.info.trained_steps)
    return Checkpoint(loaded.network.first, loaded.hand, info, id="")


def saved_states(out: str) -> list[str]:
    """Return the file names of saved states, oldest first."""
    return sorted(name for name in names_in(join(out, "checkpoints")) if _NAME.fullmatch(name))


def newest_state(out: str, hand: HandModel) -> tuple[dict[str, Tensor], int] | None:
    """Return the newest complete state, for `TrainingState.restore`, and its step; None without any.

    Raises:
        UserError: the run has another hand model, or comes from another version.
    """
    for name in reversed(saved_states(out)):
        data = read_if_exists(join(out, "checkpoints", name))
        try:
            tensors = safetensors.torch.load(data or b"")
            header = _header(data or b"")
        except (SafetensorError, ValueError, KeyError):
            continue  # damaged; an older state may be complete
        if header["version"] != STATE_VERSION:
            raise UserError(
                f"'{out}' was trained by another version of amvur and can't resume: give another folder"
            )
        if header["hand_id"] != hand.id:
            raise UserError(
                f"'{out}' was trained with hand model {header['hand_id']}, not {hand.id}: "
                "give the same --hand, or another folder"
            )
        return tensors, header["step"]
    return None


def _header(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["amvur-training"])


def claim_folder(out: str, config: TrainConfig) -> None:
    """Write OUT/config.json, or check that the run in OUT has the same settings.

    Raises:
        UserError: the folder belongs to another run.
    """
    path = join(out, "config.json")
    settings = json.loads(json.dumps(to_dict(config)))
    stored = read_if_exists(path)
    if stored is not None:
        before = json.loads(stored)
        # Settings that did not exist when the run started have their defaults.
        with suppress(UserError):
            before = json.loads(json.dumps(to_dict(from_dict(TrainConfig, before, path))))
        changed = _difference(before, settings)
        if changed:
            raise UserError(
                f"'{out}' holds a run with other settings ({', '.join(changed)}): give another folder, or the same "
                "settings to resume"
            )
    elif saved_states(out):
        raise UserError(f"'{out}' holds checkpoints but no config.json: give another folder")
    write_atomic(path, json.dumps(settings, indent=1).encode())


def _difference(old: dict[str, Any], new: dict[str, Any], under: str = "") -> list[str]:
    """Return the dotted names of settings that differ."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        if not under and key in FREE:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _difference(a, b, f"{under}{key}.")
        elif a != b:
            found.append(f"{under}{key}")
    return found
