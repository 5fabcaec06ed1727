"""Settings of a distillation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DistilConfig:
    """A distillation."""

    crop_px: int = 160
    batch_size: int = 32
    steps: int = 4000
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    ema: float = 0.999  # the running mean of the weights is kept
    checkpoint_every: int = 100
    # How far views are from upright, tight and centred: as far as a first look may be off.
    turn_deg: float = 40.0
    zoom: float = 1.4
    shift: float = 0.2
    seed: int = 0
    eight_bit: bool = False  # keep weights on the grid of `annotator/model/quantised.py`
