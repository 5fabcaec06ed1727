"""Batch norms shared between two workers: their steps are those of one worker with all photos."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from annotator.hand import load_hand
from tests.support.example_files import write_stick_hands
from tests.support.two_workers import train_on_two
from tests.trainer.test_train import TINY, largest_difference, weights
from trainer.config import OptimizerConfig, SourceConfig, TrainConfig
from trainer.start import start_network
from trainer.train import train


def test_two_workers_with_shared_norms_take_the_steps_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = TrainConfig(
        network=TINY,
        data=(SourceConfig(source=str(write_stick_hands(tmp_path / "sticks", 48))),),
        batch_size=8,
        steps=6,
        loaders=0,
        share_normalisation=True,
        optimizer=OptimizerConfig(kind="sgd", learning_rate=1e-3, ema=0, warmup_steps=1),
    )
    train(config, str(tmp_path / "one"), "cuda")
    train_on_two(config, tmp_path / "two", "cuda")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    # The statistics of the norms are among the weights.
    assert largest_difference(one, two) < 1e-4
    assert largest_difference(one, start_network(config, load_hand("open")).state_dict()) > 1e-3
