"""Columns of tracks in millimetres: lengths and positions with their std, and how deep two hands touch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.optimize import least_squares

from annotator.hand.penetration import penetration_mm
from annotator.lens import Lens

pytest.importorskip("cv2")
from tests.support.lens_labels import FRAMES, MISSING, table_of, tracked_rows, true_hands
from tests.support.moving_labels import HAND
from tests.support.opencv_lens import FISHEYE, by_opencv

PINHOLE = Lens(700, 700, 500, 500)
FISH = Lens(250, 253, 510, 490, "fisheye", FISHEYE)
TO_MIDDLE_TIP = [0, 9, 10, 11, 12]


@pytest.fixture(scope="module")
def made() -> dict[Lens, list[dict]]:
    return {lens: tracked_rows(table_of(*true_hands(25), lens)) for lens in (PINHOLE, FISH)}


def test_the_length_of_a_tracked_hand_is_that_of_its_joints_with_their_std(made):
    rng = np.random.default_rng(0)
    for row in made[PINHOLE]:
        joints, std = np.array(row["joints3d_mm"]), np.array(row["joints3d_std_mm"])
        drawn = joints + std * rng.normal(size=(4000, 21, 3))
        lengths = np.linalg.norm(np.diff(drawn[:, TO_MIDDLE_TIP], axis=1), axis=-1).sum(1)
        own = np.linalg.norm(np.diff(joints[TO_MIDDLE_TIP], axis=0), axis=-1).sum()
        assert row["hand_length_mm"] == pytest.approx(own, abs=0.2)
        assert row["hand_length_std_mm"] == pytest.approx(lengths.std(), rel=0.1)


@pytest.mark.parametrize("lens", [PINHOLE, FISH], ids=["pinhole", "fisheye"])
def test_the_std_of_a_position_is_that_of_wrists_fitted_to_drawn_errors(made, lens):
    """Joints and pixels are drawn from their std, a finger's joints together; OpenCV's camera places each hand."""
    rng = np.random.default_rng(1)
    ratios = []
    for k in (5, MISSING[0], 20):
        row = made[lens][k]
        joints, std = np.array(row["joints3d_mm"], np.float64), np.array(row["joints3d_std_mm"])
        wrist = np.array(row["camera"]["cam_t_mm"], np.float64)
        seen, std_px = by_opencv(joints + wrist, lens), np.array(row["joints2d_std_px"])
        positions = []
        for _ in range(120):
            finger = np.repeat(rng.normal(size=(5, 3)), 4, 0)
            moved = joints + np.concatenate([np.zeros((1, 3)), finger]) * std
            at = seen + rng.normal(size=seen.shape) * std_px
            fit = least_squares(lambda t, m=moved, p=at: (by_opencv(m + t, lens) - p).ravel(), wrist)
            positions.append(fit.x)
        ratios.append(np.array(row["cam_t_std_mm"]) / np.std(positions, 0))
    assert np.array(ratios) == pytest.approx(1, abs=0.3)
    assert np.mean(ratios) == pytest.approx(1, abs=0.12)


@pytest.mark.slow
def test_two_tracked_hands_that_touch_have_the_depth_of_their_meshes():
    pose, joints, wrists = true_hands(20)
    near = np.exp(
        -(((np.arange(FRAMES) - np.mean(MISSING)) / 3) ** 2)
    )  # in a few frames, as comparing takes time
    apart = (170 - 140 * near)[:, None] * [0, 0, 1.0]
    one = table_of(pose, joints, wrists, PINHOLE)
    other = table_of(pose, joints, wrists + apart, PINHOLE, missing=(0, 1))
    ok = other.filter(pc.equal(other["status"], "ok"))
    at = ok.schema.get_field_index("hand_index")
    ok = ok.set_column(at, "hand_index", pa.array([1] * len(ok), pa.int8()))
    rows = tracked_rows(pa.concat_tables([one, ok]).replace_schema_metadata(None))
    by_frame: dict[int, list[dict]] = {}
    for row in rows:
        by_frame.setdefault(row["frame"], []).append(row)
    depths = []
    for frame, hands in by_frame.items():
        if frame < 2:
            assert [hand["penetration_mm"] for hand in hands] == [None]
            continue
        assert len(hands) == 2
        placed = [np.array(hand["vertices_mm"]) + hand["camera"]["cam_t_mm"] for hand in hands]
        deep = penetration_mm(*placed, HAND.faces)
        assert [hand["penetration_mm"] for hand in hands] == pytest.approx([deep, deep], abs=0.2)
        depths.append(deep)
    assert {hand["source"] for k in MISSING for hand in by_frame[k]} == {"label", "interpolated"}
    assert depths[0] == depths[-1] == 0 and max(depths) > 3


def test_a_given_length_stays_that_length():
    rows = tracked_rows(table_of(*true_hands(20), PINHOLE, length_mm=150.0))
    free = tracked_rows(table_of(*true_hands(20), PINHOLE))
    assert free[0]["hand_length_mm"] > 160
    for row, other in zip(rows, free, strict=True):
        joints, vertices = np.array(row["joints3d_mm"]), np.array(row["vertices_mm"])
        length = np.linalg.norm(np.diff(joints[TO_MIDDLE_TIP], axis=0), axis=-1).sum()
        assert length == pytest.approx(150, abs=0.2) and row["hand_length_mm"] == pytest.approx(150, abs=0.01)
        assert row["hand_length_std_mm"] == 0
        np.testing.assert_allclose(HAND.joint_regressor @ vertices, joints, atol=0.3)
        # A smaller hand that looks as large is nearer.
        np.testing.assert_allclose(row["joints2d_px"], other["joints2d_px"], atol=0.5)
        share = row["camera"]["cam_t_mm"][2] / other["camera"]["cam_t_mm"][2]
        assert share == pytest.approx(150 / other["hand_length_mm"], rel=0.01)
