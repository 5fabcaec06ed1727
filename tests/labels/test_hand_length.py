"""Hands of a given length: meshes and translation scale, the projection does not."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest

from annotator import UserError, annotate
from annotator.job.stages import decode_shard
from annotator.photos.crops import Crops, crop_photo
from annotator.sources import ListSource
from tests.robustness.hostile_photos import encoded

MIDDLE = [0, 9, 10, 11, 12]


def length_mm(joints3d_mm: np.ndarray) -> float:
    return sum(np.linalg.norm(joints3d_mm[b] - joints3d_mm[a]) for a, b in itertools.pairwise(MIDDLE))


def test_length_scales_the_hand_and_its_distance_and_nothing_in_the_photo(lively):
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (200, 300, 3), np.uint8)
    lengths = (None, 170.0, 95.0)
    crops = [
        crop_photo(photo, 300, 200, lively.checkpoint.cut_px, [40, 20, 240, 190], hand_length_mm=length)
        for length in lengths
    ]
    free, adult, child = (
        {name: None if values is None else values for name, values in row.items()}
        for row in (lively.predict_crops(crop, side="right") for crop in crops)
    )
    predicted_mm = length_mm(free["joints3d_mm"][0])
    for label, given_mm in ((adult, 170.0), (child, 95.0)):
        factor = given_mm / predicted_mm
        assert length_mm(label["joints3d_mm"][0]) == pytest.approx(given_mm, rel=1e-4)
        for name in ("joints3d_mm", "joints3d_std_mm", "vertices_mm", "vertices_std_mm", "joint_std_mm"):
            np.testing.assert_allclose(label[name], factor * free[name], rtol=2e-4, atol=1e-3)
        np.testing.assert_array_equal(label["joints2d_px"], free["joints2d_px"])
        camera, before = label["camera"], free["camera"]
        np.testing.assert_allclose(camera["cam_t_mm"], factor * before["cam_t_mm"], rtol=1e-3)
        np.testing.assert_allclose(camera["scale"], before["scale"] / factor, rtol=1e-4)
        moved = label["joints3d_mm"] + camera["cam_t_mm"][:, None]
        before_moved = free["joints3d_mm"] + before["cam_t_mm"][:, None]
        np.testing.assert_allclose(
            moved[..., :2] / moved[..., 2:], before_moved[..., :2] / before_moved[..., 2:], atol=1e-4
        )


def test_hands_of_one_batch_have_their_own_lengths(lively):
    photo = np.full((80, 80, 3), 120, np.uint8)
    cut_px = lively.checkpoint.cut_px
    crops = Crops.stack([crop_photo(photo, 80, 80, cut_px, hand_length_mm=mm) for mm in (None, 180.0, None)])
    joints = lively.predict_crops(crops, side="right")["joints3d_mm"]
    np.testing.assert_allclose(joints[0], joints[2], atol=1e-3)
    assert length_mm(joints[1]) == pytest.approx(180, rel=1e-4)


def test_a_lists_column_comes_before_the_length_of_all(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(np.full((60, 60, 3), 90, np.uint8), "PNG"))
    with (tmp_path / "hands.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "id", "hand_length_mm"])
        writer.writerows([["a.png", "own", 172.5], ["a.png", "none", ""], ["a.png", "cm", 17.2]])
    entries = list(ListSource(str(tmp_path / "hands.csv")))
    assert entries[2].fault.reason == "bad_row" and "50 to 300 millimetres" in entries[2].fault.message
    shard = decode_shard(entries, 32, hand_length_mm=150.0)
    assert shard.crops.hand_length_mm.tolist() == [172.5, 150.0]


def test_a_length_that_no_hand_has_is_refused(tmp_path):
    with pytest.raises(UserError, match="hand_length_mm is 18: expected 50 to 300 millimetres"):
        annotate(str(tmp_path), str(tmp_path / "labels"), hand_length_mm=18)


def test_drawn_hands_have_the_given_length_on_average(lively):
    photo = np.random.default_rng(1).integers(0, 255, (80, 80, 3), np.uint8)
    cut_px = lively.checkpoint.cut_px
    free, given = (
        lively.predict_crops(crop_photo(photo, 80, 80, cut_px, hand_length_mm=length), "right", 4)
        for length in (None, 120.0)
    )
    factor = 120 / length_mm(free["joints3d_mm"][0])
    for name in ("joints3d_samples_mm", "vertices_samples_mm"):
        np.testing.assert_allclose(given[name], factor * free[name], rtol=1e-4, atol=1e-2)
