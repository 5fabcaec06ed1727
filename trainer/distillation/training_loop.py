"""Train a network on steps that follow from their number, and keep the running mean of its weights; runs resume."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from annotator.storage.files import write_atomic
from trainer.optimizer import cosine_rate
from trainer.state import RunningMean

Student = TypeVar("Student", bound=nn.Module)

#: The file of a run from which it resumes.
STATE_FILE = "state.safetensors"

#: Gradients of all weights together are cut to this length.
CLIP_NORM = 10.0


@dataclass(frozen=True)
class Schedule:
    """The steps of a run, and their learning rates."""

    batch_size: int = 32
    steps: int = 4000
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    ema: float = 0.999  # the running mean of the weights is kept
    checkpoint_every: int = 100
    seed: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, see `cosine_rate`."""
        return cosine_rate(self.learning_rate, step, self.steps, self.warmup_steps)

    def numbers(self, step: int) -> Tensor:
        """Return the numbers (batch_size,) of a step's views."""
        return torch.arange(self.batch_size) + step * self.batch_size


def train_with_running_mean(
    student: Student,
    loss_of_step: Callable[[Student, int], Tensor],
    out: Path,
    schedule: Schedule,
    on_save: Callable[[Student], None],
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Student:
    """Train `student` and return the running mean of its weights; OUT keeps the run, which resumes there.

    Args:
        student: a network; its batch norms keep their statistics.
        loss_of_step: the loss of the network in a step, which depends on nothing but these two.
        out: a folder.
        schedule: of the steps.
        on_save: called with the running mean at each saved step.
        on_step: called after each step with its number and loss.
    """
    student = student.eval()
    mean = copy.deepcopy(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=schedule.learning_rate, weight_decay=0.0)
    start = _resume(out / STATE_FILE, student, mean, optimizer)
    running_mean = RunningMean(mean, student)
    for step in range(start, schedule.steps):
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        loss = loss_of_step(student, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
        optimizer.step()
        running_mean.update(schedule.ema, step)
        on_step(step + 1, float(loss.detach()))
        if (step + 1) % schedule.checkpoint_every == 0 or step + 1 == schedule.steps:
            _save(out / STATE_FILE, step + 1, student, mean, optimizer)
            on_save(mean)
    return mean


def _save(
    path: Path, step: int, student: nn.Module, mean: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    tensors = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
    tensors |= {f"mean.{name}": tensor for name, tensor in mean.state_dict().items()}
    for name, parameter in student.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(str(path), safetensors.torch.save(contiguous, metadata={"step": str(step)}))


def _resume(path: Path, student: nn.Module, mean: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the state of an earlier run, if any; return the number of its steps."""
    if not path.is_file():
        return 0
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
        step = int(file.metadata()["step"])
    for prefix, module in (("student.", student), ("mean.", mean)):
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(own)
    for name, parameter in student.named_parameters():
        state = {key: tensors.get(f"optimizer.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
        if all(value is not None for value in state.values()):  # a layer without gradients has no state
            optimizer.state[parameter] = state
    return step
