"""Photos that came squashed get their shape back, and fits find it."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotator.fitting.hand_fit import HandFitter
from annotator.fitting.landmarks import Landmarks
from annotator.hand.open_hand import open_hand
from trainer.synth.landmarks import simulated_detections

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def squashed(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("aspect_ratio")


def test_only_squashed_photos_change_their_shape(squashed, tmp_path):
    for folder in ("phone-gestures", "asl-letters"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / folder / "a.jpg")
    squashed.with_true_aspect(tmp_path / "images", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "phone-gestures" / "a.jpg").size == (30, 40)
    one, other = (tmp_path / part / "asl-letters" / "a.jpg" for part in ("images", "out"))
    assert one.read_bytes() == other.read_bytes()


def test_fits_of_squashed_drawn_hands_cost_least_at_their_true_shape():
    drawn = simulated_detections(open_hand(), 60, np.random.default_rng(0))
    squares = drawn.landmarks.joints2d_px * (4 / 3, 1)  # 3:4 stretched to a square
    fitter = HandFitter()
    costs = [
        float(
            fitter.costs(
                Landmarks(
                    squares * (factor**0.5, factor**-0.5), drawn.landmarks.depth_px, drawn.landmarks.is_right
                )
            ).mean()
        )
        for factor in (0.5625, 0.75, 1.0)
    ]
    assert costs[1] == min(costs)
