"""Settings of the distillations."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.distillation.training_loop import Schedule


@dataclass(frozen=True)
class DistilConfig(Schedule):
    """The distillation of a landmark network for upright crops."""

    crop_px: int = 160
    # How far views are from upright, tight and centred: as far as a first look may be off.
    rotation_deg: float = 40.0
    zoom: float = 1.4
    shift: float = 0.2
    eight_bit: bool = False  # keep weights on the grid of `annotator/model/quantised.py`


@dataclass(frozen=True)
class FirstLookConfig(Schedule):
    """The training of a first look, for crops around a hand in any rotation."""

    batch_size: int = 48
    steps: int = 5000
    learning_rate: float = 8e-4
    # How far views are from the crops of boxes: in size, and in half-sides.
    zoom: float = 1.4
    shift: float = 0.22
    # Shares of the collections in each step, in the order of tools/held_out.py; of squares without a hand, and of
    # synthetic hands.
    empty: float = 0.25
    drawn: float = 0.2
    photos: tuple[float, ...] = (0.38, 0.09, 0.08)
