"""Predictions that are no numbers: `failed`, reason `not_finite`, and no other hand suffers."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from annotator import annotate, load
from annotator.commands.fit import fit_shard
from annotator.config import FitConfig
from annotator.hand import load_hand
from annotator.job.shard import Shard
from annotator.job.stages import predict_shard
from annotator.labels.finite import finite_rows
from annotator.labels.schema import REASONS
from annotator.model.checkpoint import save_checkpoint
from annotator.photos.crops import Crops, crop_photo
from annotator.predictor import Predictor
from annotator.sources.entry import Entry, ListedHand
from tests.conftest import SMALL
from tests.fitting.test_fit import drawn


@pytest.mark.slow
def test_a_checkpoint_with_a_weight_that_is_nan_labels_nothing(photos, lively, tmp_path, local_ray):
    network = copy.deepcopy(lively.checkpoint.network)
    with torch.no_grad():
        network.camera.mlp[2].weight[4, 0] = torch.nan
    broken = tmp_path / "broken.safetensors"
    save_checkpoint(dataclasses.replace(lively.checkpoint, network=network), broken)
    labels = tmp_path / "labels"
    record = annotate(str(photos / "left"), str(labels), checkpoint=str(broken), compute=SMALL)
    assert record.outcomes == {"failed: not_finite": 25}
    rows = pq.read_table(labels / "data").to_pylist()
    assert {row["status"] for row in rows} == {"failed"} and "not_finite" in REASONS
    assert all(row["vertices_mm"] is None and row["error"] and row["checkpoint"] is None for row in rows)


@pytest.mark.parametrize("head", ["side", "presence", "texture"])
def test_a_weight_that_moves_one_column_alone_counts_too(lively, head):
    network = copy.deepcopy(lively.checkpoint.network)
    parts = {"side": network.side, "presence": network.presence, "texture": network.texture}
    with torch.no_grad():
        next(parts[head].parameters()).fill_(torch.nan)
    broken = Predictor(dataclasses.replace(lively.checkpoint, network=network), torch.device("cpu"))
    found = predict_shard(broken, grey_shard(lively, 3), "auto")
    assert [row["reason"] for row in found.rows] == ["not_finite"] * 3 and not found.hands


def grey_shard(predictor: Predictor, count: int) -> Shard:
    crop_px = predictor.checkpoint.info.network.crop_px
    rng = np.random.default_rng(1)
    photos = [rng.integers(0, 256, (40, 40, 3), np.uint8) // (1 + k) for k in range(count)]
    crops = Crops.stack([crop_photo(photo, 40, 40, crop_px) for photo in photos])
    return Shard([{"image_id": str(k), "hand_index": 0} for k in range(count)], list(range(count)), crops)


def overflowing_at_one(lively: Predictor, shard: Shard) -> tuple[Predictor, Predictor, int]:
    """Return a predictor whose camera overflows for one crop, a similar one that never does, and the crop's number."""
    network = copy.deepcopy(lively.checkpoint.network)
    hidden = []
    hook = network.camera.mlp[0].register_forward_hook(lambda _, __, out: hidden.append(out))
    plain = Predictor(dataclasses.replace(lively.checkpoint, network=network), torch.device("cpu"))
    plain.predict_crops(shard.crops, "right")
    hook.remove()
    highest, which = hidden[-1].sort(0, descending=True)
    unit = int((highest[0] - highest[1]).argmax())
    between = (highest[0, unit] + highest[1, unit]) / 2
    with torch.no_grad():
        first, last = network.camera.mlp[0], network.camera.mlp[2]
        first.bias[unit] -= between
        first.weight[unit] *= 1e6
        first.bias[unit] *= 1e6
        last.weight[:, unit] = 0
        calm = copy.deepcopy(network)
        last.weight[4, unit] = 3e38
        assert all(values.isfinite().all() for values in network.parameters())
    overflowing, without = (
        Predictor(dataclasses.replace(lively.checkpoint, network=one), torch.device("cpu"))
        for one in (network, calm)
    )
    return overflowing, without, int(which[0, unit])


def test_one_crop_that_overflows_takes_no_other_along(lively):
    shard = grey_shard(lively, 8)
    overflowing, calm, number = overflowing_at_one(lively, shard)
    assert np.isinf(overflowing.predict_crops(shard.crops, "right")["camera"]["translation"][number]).any()
    found = predict_shard(overflowing, shard, "right")
    expected = ["ok"] * 8
    expected[number] = "failed"
    assert [row["status"] for row in found.rows] == expected
    assert found.rows[number]["reason"] == "not_finite"
    assert found.hand_rows == [k for k in range(8) if k != number]
    whole = calm.predict_crops(shard.crops, "right")
    for name in ("vertices_mm", "vertex_rgb"):
        others = np.delete(whole[name], number, 0)
        np.testing.assert_allclose(found.hands[name].astype(float), others.astype(float), atol=2)
    assert len(found.hands["camera"]["scale"]) == 7 and found.hands["vertex_rgb"].dtype == np.uint8


def test_landmarks_too_large_for_a_fit_fail_and_take_no_other_along():
    _, points, _, _ = drawn(3, 5)
    points = np.array(points, np.float64) + [320, 240, 0]
    points[1] *= 1e36
    hands = [
        ListedHand((0.0, 0.0, 640.0, 480.0), 0.9, tuple(map(tuple, landmarks.tolist())))
        for landmarks in points
    ]
    entries = [
        Entry("", str(k), hands=(hand,), extra={"width": 640, "height": 480}) for k, hand in enumerate(hands)
    ]
    shard = fit_shard(entries, load_hand("open"), FitConfig(), "fit-0", "list")
    assert [row["status"] for row in shard.rows] == ["ok", "failed", "ok"]
    assert shard.rows[1]["reason"] == "not_finite" and shard.hand_rows == [0, 2]
    assert finite_rows(shard.hands, 2).all()


def test_labels_that_ship_are_finite():
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (90, 80, 3), np.uint8) for _ in range(2)]
    for label in load("default", device="cpu").predict(photos):
        one = {name: value for name, value in label.items() if isinstance(value, np.ndarray)}
        assert finite_rows({name: value[None] for name, value in one.items()}, 1).all()
