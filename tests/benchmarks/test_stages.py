"""The stages that benchmarks/synth.py times exist."""

import importlib
from pathlib import Path


def test_every_timed_stage_of_drawing_exists(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    stages = importlib.import_module("synth").STAGES
    assert stages and all(callable(getattr(owner, name)) for owner, name in stages)
