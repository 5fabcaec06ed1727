"""Synthetic sequences: their motion is smooth, their labels true, and a seed repeats them."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotator.errors import UserError
from trainer.synth.write_sequences import write_sequences

SEQUENCES, FRAMES, SIZE_PX = 2, 14, 64


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn")
    write_sequences(out, SEQUENCES, FRAMES, seed=2, size_px=SIZE_PX)
    return out, pq.read_table(out / "truth.parquet").to_pylist()


def test_each_frame_is_listed_with_its_sequence_number_time_and_box(drawn):
    out, rows = drawn
    assert [(row["sequence"], row["frame"]) for row in rows] == [
        (f"s{s:04d}", f) for s in range(SEQUENCES) for f in range(FRAMES)
    ]
    with (out / "frames.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert [one["path"] for one in listed] == [row["image_uri"] for row in rows]
    for one, row in zip(listed, rows, strict=True):
        assert float(one["time_s"]) == row["time_s"]
        assert [float(one[k]) for k in ("x1", "y1", "x2", "y2")] == pytest.approx(row["box_xyxy"], abs=0.01)
        with Image.open(out / row["image_uri"]) as photo:
            assert photo.size == (SIZE_PX, SIZE_PX)


def test_one_hand_moves_smoothly_inside_the_photo(drawn):
    _, rows = drawn
    for s in range(SEQUENCES):
        of_one = rows[s * FRAMES : (s + 1) * FRAMES]
        joints = np.array([row["joints3d_mm"] for row in of_one])
        speed = np.linalg.norm(np.diff(joints, axis=0), axis=-1)
        jerk = np.linalg.norm(np.diff(joints, 3, axis=0), axis=-1)
        assert 0.1 < speed.mean() < 30 and jerk.mean() < 0.25 * speed.mean()
        assert len({tuple(row["betas"]) for row in of_one}) == len({row["is_right"] for row in of_one}) == 1
        points = np.array([row["joints2d_px"] for row in of_one])
        assert (points > -4).all() and (points < SIZE_PX + 4).all()
        position = np.array([row["camera"]["cam_t_mm"] for row in of_one])
        assert np.linalg.norm(np.diff(position, 3, axis=0), axis=-1).max() < 10


def test_joints_project_to_where_they_are_seen_and_lie_on_the_hand(drawn):
    out, rows = drawn
    inside = []
    for row in rows:
        camera = row["camera"]
        moved = np.array(row["joints3d_mm"]) + camera["cam_t_mm"]
        seen = camera["focal_px"] * moved[:, :2] / moved[:, 2:] + camera["principal_px"]
        np.testing.assert_allclose(seen, row["joints2d_px"], atol=0.1)
        mask = np.asarray(Image.open((out / "masks" / row["image_id"]).with_suffix(".png")))
        at = seen.astype(int).clip(0, SIZE_PX - 1)
        inside.append((mask[at[:, 1], at[:, 0]] > 0).mean())
    assert np.median(inside) > 0.7  # all but what an object or the hand's edge hides


def test_frames_of_a_sequence_look_alike_and_those_of_two_do_not(drawn):
    out, rows = drawn
    photos = np.stack([np.asarray(Image.open(out / row["image_uri"]), float) for row in rows])
    next_ones = np.abs(np.diff(photos, axis=0)).mean((1, 2, 3))
    assert next_ones[FRAMES - 1] > 3 * np.delete(next_ones, FRAMES - 1).mean()


def test_a_seed_repeats_its_files_and_another_folder_is_left_alone(drawn, tmp_path):
    out, _ = drawn
    write_sequences(tmp_path / "again", SEQUENCES, FRAMES, seed=2, size_px=SIZE_PX)
    for path in out.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(out)).read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="other files than synthetic photos"):
        write_sequences(tmp_path / "mine", 1, 2, seed=2, size_px=SIZE_PX)
    with pytest.raises(UserError, match="seed -1 is negative"):
        write_sequences(tmp_path / "new", 1, 2, seed=-1, size_px=SIZE_PX)
