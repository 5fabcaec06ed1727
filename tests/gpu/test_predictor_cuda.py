"""Labels and training on a GPU, without Ray: compared with a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from annotator import load
from annotator.config import read_config
from annotator.hand import load_hand
from annotator.model.checkpoint import load_checkpoint
from trainer.config import TrainConfig
from trainer.synth import SyntheticHands
from trainer.train import train

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    drawn = SyntheticHands(load_hand("open"), 128, seed=5).batch(torch.arange(64)).image
    return list(drawn.permute(0, 2, 3, 1).numpy())


def column(labels, name: str) -> np.ndarray:
    return np.stack([label[name] for label in labels])


def off_mm(labels, others) -> np.ndarray:
    """Mean distance of the vertices of each hand, (B,)."""
    return np.linalg.norm(column(labels, "vertices_mm") - column(others, "vertices_mm"), axis=-1).mean(1)


@pytest.mark.parametrize("side", ["right", "left", "auto"])
def test_a_gpu_labels_what_a_cpu_labels(photos, side):
    cpu = load("default", device="cpu").predict(photos, side=side)
    gpu = load("default", device="cuda").predict(photos, side=side)
    # A side of probability 50 % may fall either way.
    sure = [k for k, label in enumerate(cpu) if side != "auto" or label["side_score"] > 0.6]
    cpu, gpu = [cpu[k] for k in sure], [gpu[k] for k in sure]
    assert len(sure) > 48 and [a["is_right"] for a in cpu] == [b["is_right"] for b in gpu]
    assert off_mm(gpu, cpu).max() < 0.3  # convolutions in TF32
    np.testing.assert_allclose(column(gpu, "joints3d_std_mm"), column(cpu, "joints3d_std_mm"), rtol=0.05)
    assert (column(gpu, "vertex_visible") != column(cpu, "vertex_visible")).mean() < 0.02
    rgb = column(gpu, "vertex_rgb").astype(int) - column(cpu, "vertex_rgb")
    assert np.abs(rgb).mean() < 2


@pytest.mark.parametrize(
    "precision",
    [
        "float16",
        pytest.param(
            "bfloat16",
            marks=pytest.mark.xfail(
                strict=True, reason="three bits less; on a CPU 0.43 mm. Labels are not made in it"
            ),
        ),
    ],
)
def test_in_half_precision_hands_move_by_less_than_three_tenths_of_a_millimetre_on_average(photos, precision):
    plain = load("default", device="cuda").predict(photos, side="right")
    half = load("default", device="cuda", precision=precision).predict(photos, side="right")
    assert 0 < off_mm(half, plain).mean() < 0.3


def test_a_batch_size_is_found_and_used(photos):
    predictor = load("default", device="cuda")
    predictor.find_batch_size()
    assert predictor.batch_size >= 32
    assert len(predictor.predict(photos)) == len(photos)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_goes_on_where_it_was(tmp_path, precision):
    settings = ["network.imagenet=false", "freeze_early=false", "network.crop_px=64", "batch_size=16"]
    settings += [f"precision={precision}", "checkpoint_every=4", "pictures_every=8", "log_every=1"]
    losses = []
    for steps in (4, 8):
        config = read_config(TrainConfig, "train", "supervised", [*settings, f"steps={steps}"])
        train(config, str(tmp_path / "run"), "cuda", lambda progress: losses.append(progress.losses))
    assert len(losses) == 8 and all(np.isfinite(value) for output in losses for value in output.values())
    trained = load_checkpoint(str(tmp_path / "run" / "model.safetensors"))
    assert trained.info.trained_steps == 8
    assert all(torch.isfinite(t).all() for t in trained.network.state_dict().values())


def test_the_benchmark_runs_to_its_end():
    command = [sys.executable, str(BENCHMARK), "--count", "64", "--batch-size", "32", "--steps", "2"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = json.loads(output.splitlines()[-1])["figures"]
    assert len(figures) > 50 and all(np.isfinite(value) and value >= 0 for value in figures.values())
