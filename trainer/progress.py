"""Progress of a training: losses, speed, and the share of time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from trainer.config import TrainConfig

Item = TypeVar("Item")


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a run, reported every `log_every` steps."""

    step: int
    steps: int
    losses: dict[str, float]  # means over all workers
    photos_per_s: float
    waiting: float  # share of time spent waiting for data
    learning_rate: float


class Clock:
    """Measure the share of time spent waiting for data."""

    def __init__(self) -> None:
        self.photos = 0
        self._waited_s = 0.0
        self._since = time.perf_counter()
        self._first = True

    def waited(self, loader: Iterator[Item]) -> Iterator[Item]:
        """Yield the loader's items and count the time until each as waiting; the first counts as start-up."""
        while True:
            began = time.perf_counter()
            parts = next(loader, None)
            if parts is None:
                return
            if self._first:
                self._first, self._since = False, time.perf_counter()
            else:
                self._waited_s += time.perf_counter() - began
            yield parts

    def progress(
        self, step: int, config: TrainConfig, means: dict[str, Tensor], rate: float
    ) -> TrainingProgress:
        """Return progress since the last call."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        progress = TrainingProgress(
            step=step,
            steps=config.steps,
            losses={name: float(value) for name, value in means.items()},
            photos_per_s=self.photos / seconds,
            waiting=self._waited_s / seconds,
            learning_rate=rate,
        )
        self.photos, self._waited_s, self._since = 0, 0.0, now
        return progress
