"""Lenses compared with OpenCV, a second implementation of the same models."""

from __future__ import annotations

import numpy as np
import pytest

from annotator.lens import Lens

cv2 = pytest.importorskip("cv2")

#: Calibrations of real cameras: a webcam, an action camera, a wide-angle one with the rational model.
PINHOLES = [
    (),
    (-0.28, 0.07, 0.001, -0.0008),
    (0.12, -0.25, -0.002, 0.003, 0.11),
    (-0.31, 0.12, 0.0002, -0.0006, -0.02),
    (5.2, 2.1, 0.0001, -0.0002, 0.1, 5.6, 3.9, 0.6),
    (-0.2, 0.05, 0.001, 0.002, 0.01, 0.02, -0.01, 0.001, 0.003, -0.001, 0.002, 0.0005),
    (-0.2, 0.05, 0.001, 0.002, 0.01, 0.02, -0.01, 0.001, 0.003, -0.001, 0.002, 0.0005, 0.04, -0.06),
]
FISHEYES = [(), (-0.02, 0.01, -0.004, 0.0005), (0.08, -0.03, 0.02, -0.006), (-0.12, 0.02, 0.0, 0.0)]


def matrix(lens: Lens) -> np.ndarray:
    return np.array([[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1]])


def directions(most_deg: float, count: int = 400) -> np.ndarray:
    rng = np.random.default_rng(0)
    angle, around = np.radians(rng.uniform(0, most_deg, count)), rng.uniform(0, 2 * np.pi, count)
    return np.stack(
        [np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), np.cos(angle)], 1
    ) * rng.uniform(100, 900, (count, 1))


@pytest.mark.parametrize("distortion", PINHOLES, ids=len)
def test_pinhole_lenses_are_opencvs(distortion):
    lens = Lens(610.0, 604.0, 331.2, 242.7, "pinhole", distortion)
    points = directions(35)
    expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix(lens), np.array(distortion))[0][
        :, 0
    ]
    seen = lens.project(points)
    np.testing.assert_allclose(seen, expected, atol=1e-9)
    # OpenCV's inverse is iterative: it gets enough steps.
    enough = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 500, 1e-13)
    back = cv2.undistortPoints(seen[:, None], matrix(lens), np.array(distortion), criteria=enough)[:, 0]
    rays = lens.rays(seen)
    np.testing.assert_allclose(rays[:, :2] / rays[:, 2:], back, atol=1e-6)
    np.testing.assert_allclose(rays, points / np.linalg.norm(points, axis=1, keepdims=True), atol=1e-9)


@pytest.mark.parametrize("distortion", FISHEYES, ids=str)
def test_fisheye_lenses_are_opencvs(distortion):
    lens = Lens(310.0, 312.0, 640.5, 511.0, "fisheye", distortion)
    points = directions(75)
    k = np.array(distortion or (0.0,) * 4)
    expected = cv2.fisheye.projectPoints(points[:, None], np.zeros(3), np.zeros(3), matrix(lens), k)[0][:, 0]
    seen = lens.project(points)
    np.testing.assert_allclose(seen, expected, atol=1e-9)
    rays = lens.rays(seen)
    np.testing.assert_allclose(rays, points / np.linalg.norm(points, axis=1, keepdims=True), atol=1e-9)
    near = directions(60)
    seen = lens.project(near)
    back = cv2.fisheye.undistortPoints(seen[:, None], matrix(lens), k)[:, 0]
    rays = lens.rays(seen)
    np.testing.assert_allclose(rays[:, :2] / rays[:, 2:], back, atol=1e-5)


def test_a_fisheye_sees_behind_itself_and_no_further_than_its_polynomial_turns():
    wide = Lens(300, 300, 640, 640, "fisheye")
    ray = np.array([np.sin(1.9), 0, np.cos(1.9)])  # 109 degrees, equidistant
    np.testing.assert_allclose(wide.project(ray), [640 + 300 * 1.9, 640], atol=1e-9)
    np.testing.assert_allclose(wide.rays([640 + 300 * 1.9, 640]), ray, atol=1e-12)
    # theta - 0.12 theta^3 has its largest value at theta = 1.667, where it is 1.111.
    turning = Lens(300, 300, 640, 640, "fisheye", (-0.12, 0, 0, 0))
    assert np.isfinite(turning.project([np.sin(1.66), 0, np.cos(1.66)])).all()
    assert np.isnan(turning.project([np.sin(1.7), 0, np.cos(1.7)])).all()
    assert np.isfinite(turning.rays([640 + 300 * 1.11, 640])).all()
    assert np.isnan(turning.rays([640 + 300 * 1.12, 640])).all()


def test_a_pinhole_shows_nothing_past_the_turn_of_its_polynomial_nor_behind():
    # r - 0.28 r^3 turns at r = 1.09, at 47.5 degrees; beyond, OpenCV projects back into the photo.
    lens = Lens(600, 600, 320, 240, "pinhole", (-0.28, 0, 0, 0))
    assert np.isfinite(lens.project([1.08, 0, 1])).all()
    assert np.isnan(lens.project([1.2, 0, 1])).all() and np.isnan(lens.project([0.1, 0.1, -1])).all()
    assert np.isnan(lens.rays([320 + 600 * 0.74, 240])).all()  # the largest radius is 0.727
    rays = lens.rays(np.full((3, 4, 2), [320.0, 240.0]))
    np.testing.assert_array_equal(rays, np.broadcast_to([0, 0, 1.0], (3, 4, 3)))


@pytest.mark.parametrize(
    ("model", "distortion", "words"),
    [("pinhole", (0.1,), "1 coefficients"), ("fisheye", (0.1,) * 5, "5 coefficients"), ("omni", (), "omni")],
)
def test_other_models_are_refused(model, distortion, words):
    with pytest.raises(ValueError, match=words):
        Lens(600, 600, 320, 240, model, distortion)


def test_a_lens_is_plain_without_distortion_and_with_one_focal_length():
    assert Lens(600, 600.3, 320, 240).is_plain and Lens(600, 600, 1, 2, "pinhole", (0.0,) * 5).is_plain
    assert not Lens(600, 602, 320, 240).is_plain and not Lens(600, 600, 320, 240, "fisheye").is_plain
    assert not Lens(600, 600, 320, 240, "pinhole", (0, 0, 0.001, 0)).is_plain
