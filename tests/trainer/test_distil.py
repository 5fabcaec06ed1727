"""A small landmark network taught by a large one: views, what counts, and runs that resume."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from annotator.model.landmarker import Landmarker, LandmarkHand
from trainer.distil import MODEL_FILE, DistilConfig, distance, distil, view
from trainer.keyed import keys

STILL = DistilConfig(turn_deg=0, zoom=1, shift=0)


def landmarker(seed: int) -> Landmarker:
    torch.manual_seed(seed)
    return Landmarker().eval()


def crops(count: int = 4) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_a_view_without_randomness_is_the_tight_crop_except_for_colours():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (90, 90), Image.Resampling.BICUBIC
    )
    wide = np.asarray(smooth)
    seen = view(torch.from_numpy(wide.copy())[None], keys(0, torch.tensor([3])), 1.5, STILL)[0]
    tight = Image.fromarray(wide[15:75, 15:75]).resize((224, 224), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.asarray(tight).copy()).permute(2, 0, 1).float().flatten(1)
    for ours, theirs in zip(seen.flatten(1), expected, strict=True):
        assert np.corrcoef(ours, theirs)[0, 1] > 0.97  # gain, offset and noise keep the correlation


def test_landmarks_count_by_the_teachers_presence():
    def hand(offset: float, presence: float) -> LandmarkHand:
        points = torch.zeros(1, 21, 3) + offset
        return LandmarkHand(points, 100 * points, torch.tensor([presence]), torch.tensor([0.0]))

    surely, hardly = (
        distance(hand(0.1, p), hand(0.0, p)) - distance(hand(0, p), hand(0, p)) for p in (20.0, -20.0)
    )
    # Smooth L1 beyond 1 is linear: 0.1 / 0.02 - 1/2 and 10 / 3 - 1/2.
    assert float(surely) == pytest.approx(4.5 + 10 / 3 - 0.5, rel=1e-4)
    assert float(hardly) == pytest.approx(0, abs=1e-5)


def test_a_stopped_run_resumes_with_the_same_result(tmp_path):
    config = DistilConfig(crop_px=64, batch_size=2, steps=4, warmup_steps=1, checkpoint_every=2)
    distil(landmarker(0), landmarker(1), crops(), 1.5, tmp_path / "whole", config)

    class Stop(Exception):  # noqa: N818
        pass

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        distil(landmarker(0), landmarker(1), crops(), 1.5, tmp_path / "parts", config, stop)
    distil(landmarker(0), landmarker(1), crops(), 1.5, tmp_path / "parts", config)
    whole, parts = (safetensors.torch.load_file(tmp_path / name / MODEL_FILE) for name in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor)


def test_the_student_comes_closer_to_its_teacher(tmp_path):
    losses: list[float] = []
    config = dataclasses.replace(
        STILL, crop_px=64, batch_size=2, steps=30, warmup_steps=5, learning_rate=1e-3
    )
    distil(landmarker(0), landmarker(1), crops(2), 1.5, tmp_path, config, lambda _, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
