"""The weights that ship still say what they said when their numbers were written down (docs/model-card.md).

tests/data/shipped.json is made by benchmarks/shipped.py; tests/data/kept_aside.parquet is what MediaPipe found in the
real photos that nobody trains on, and the squares beside hands that it did not.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from annotator import UserError, load
from annotator.model.checkpoint import SHIPPED, load_checkpoint
from trainer.evaluate import evaluate

DATA = Path(__file__).parent / "data"
SAID = json.loads((DATA / "shipped.json").read_text())

#: Other processors round otherwise, and a joint may cross a bin.
TOLERANCE = 0.01


def check(found: dict, said: dict, *path: str) -> None:
    for name in path:
        found, said = found[name], said[name]
    assert found == pytest.approx(said, rel=TOLERANCE), path


@pytest.fixture(scope="module")
def aside(tmp_path_factory, sign_digits, hand_scenes) -> dict[str, str]:
    """Examples of the hands kept aside, of each collection."""
    out = tmp_path_factory.mktemp("aside")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DATA.parents[1] / "benchmarks")
        importlib.import_module("shipped").read_aside(hand_scenes.parent, out)
    return {folder.name: str(folder) for folder in out.iterdir()}


def test_the_file_is_small_plain_and_the_one_whose_numbers_are_told():
    assert SHIPPED.stat().st_size < 16 << 20
    tensors = safetensors.torch.load(SHIPPED.read_bytes())
    assert {t.dtype for t in tensors.values() if t.ndim > 1} == {torch.float16}
    loaded = load_checkpoint("default")
    assert loaded.id == SAID["checkpoint"] and loaded.info.trained and loaded.info.calibration.fitted_on
    assert all(torch.isfinite(t).all() for t in loaded.network.state_dict().values())


def test_drawn_hands_that_nobody_trained_on(tmp_path):
    found = evaluate("default", "synth", str(tmp_path), first=SAID["first"], count=SAID["count"])
    said = SAID["synth"]
    check(found, said, "joints3d", "pa_mpjpe_mm")
    check(found, said, "joints3d", "mpjpe_mm")
    check(found, said, "joints2d", "error_share_of_crop")
    check(found, said, "texture", "psnr_db")
    for axis in "xyz":
        check(found, said, "uncertainty", "joints3d", "axes", axis, "coverage", "68%")
        check(found, said, "uncertainty", "vertices", "axes", axis, "coverage", "68%")
    check(found, said, "expected_error", "50%", "expected_mm")


def test_std_of_drawn_hands_measures_along_each_axis():
    """The recorded numbers, within what 500 photos leave unsure."""
    for kind in ("joints3d", "vertices", "joints2d"):
        for axis in SAID["synth"]["uncertainty"][kind]["axes"].values():
            assert axis["coverage"]["68%"] == pytest.approx(0.68, abs=0.03)
    for kept in SAID["synth"]["expected_error"].values():
        assert kept["expected_mm"] == pytest.approx(kept["found_mm"], rel=0.05)


@pytest.mark.parametrize("name", ["sign-digits", "hand-scenes"])
def test_real_hands_that_were_kept_aside(name, aside, tmp_path):
    found = evaluate("default", aside[name], str(tmp_path))
    check(found, SAID[name], "joints2d", "count")
    check(found, SAID[name], "joints2d", "error_share_of_crop")
    check(found, SAID[name], "guess3d", "pa_mpjpe_mm")
    check(found, SAID[name], "size", "hand_length_mm")
    check(found, SAID[name], "uncertainty", "guess3d", "spearman")
    check(found, SAID[name], "side", "right_taken_for_right")
    check(found, SAID[name], "presence", "hands_taken_for_hands")
    if name == "hand-scenes":  # only scenes have room beside the hands
        check(found, SAID[name], "presence", "nothing_taken_for_nothing")


def test_in_half_precision_labels_stay_where_they_were(sign_digits):
    photos = sorted(sign_digits.rglob("*.JPG"))[::130]
    plain = load("default", device="cpu").predict(photos)
    half = load("default", device="cpu", precision="float16").predict(photos)
    away_mm = np.array(
        [
            np.linalg.norm(a["vertices_mm"] - b["vertices_mm"], axis=-1).mean()
            for a, b in zip(half, plain, strict=True)
        ]
    )
    assert 0 < away_mm.mean() < 0.1 and away_mm.max() < 0.3
    assert all(a["is_right"] == b["is_right"] for a, b in zip(half, plain, strict=True))
    with pytest.raises(UserError, match="precision is 'fp8', may be float32, float16, bfloat16"):
        load("default", precision="fp8")
