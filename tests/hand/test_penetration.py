"""Penetration of spheres, whose depth is known, and of hands with a brute-force answer by trimesh."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from annotator.hand import load_hand
from annotator.hand.penetration import penetration_mm, surface_distances, winding_numbers

BALL = trimesh.creation.icosphere(4, 50.0)
TEMPLATE_MM = np.asarray(load_hand("open").v_template, np.float64) * 1000
VERTICES, FACES = np.asarray(BALL.vertices), np.asarray(BALL.faces)


@pytest.mark.parametrize(
    ("apart_mm", "depth_mm"), [(60.0, 40.0), (95.0, 5.0), (99.9, 0.1), (101.0, 0.0), (300.0, 0.0)]
)
def test_balls_reach_into_each_other_by_their_overlap(apart_mm, depth_mm):
    away = np.array([apart_mm, 0, 0])
    found = penetration_mm(VERTICES, VERTICES + away, FACES)
    assert found == pytest.approx(depth_mm, abs=0.15)  # an icosphere is a little flatter than a ball
    assert penetration_mm(VERTICES + away, VERTICES, FACES) == found
    # A mirrored mesh, as a left hand's, has its triangles the other way round.
    assert penetration_mm(VERTICES, VERTICES * [-1, 1, 1] + away, FACES) == pytest.approx(found, abs=0.05)


def test_an_open_mesh_has_an_inside_too():
    open_faces = FACES[VERTICES[FACES].mean(1)[:, 0] > -45]  # without a cap on the far side
    assert len(open_faces) < len(FACES)
    found = penetration_mm(VERTICES, VERTICES + [0, 90.0, 0], open_faces)
    assert found == pytest.approx(10, abs=0.2)


def test_distances_are_trimeshs_and_a_ball_winds_once_around_its_inside():
    hand = load_hand("open")
    triangles = TEMPLATE_MM[hand.faces]
    rng = np.random.default_rng(0)
    points = rng.uniform(TEMPLATE_MM.min(0), TEMPLATE_MM.max(0), (60, 3))
    closest = trimesh.triangles.closest_point
    nearest = [
        np.linalg.norm(closest(triangles, np.tile(point, (len(triangles), 1))) - point, axis=1).min()
        for point in points
    ]
    np.testing.assert_allclose(surface_distances(points, triangles), nearest, atol=1e-6)
    radius = np.linalg.norm(points := rng.normal(0, 40, (200, 3)), axis=1)
    found = np.abs(winding_numbers(points, VERTICES[FACES]))
    np.testing.assert_allclose(found[radius < 49.5], 1, atol=1e-9)
    np.testing.assert_allclose(found[radius > 50], 0, atol=1e-9)


def test_two_hands_apart_and_through_each_other():
    hand = load_hand("open")
    left = TEMPLATE_MM * [-1, 1, 1]
    size = np.ptp(TEMPLATE_MM, axis=0).max()
    assert penetration_mm(TEMPLATE_MM, left + [2 * size, 0, 0], hand.faces) == 0
    middle = TEMPLATE_MM.mean(0) - left.mean(0)
    assert 3 < penetration_mm(TEMPLATE_MM, left + middle, hand.faces) < 40


@pytest.mark.parametrize("seed", range(4))
def test_the_depth_is_that_of_all_points_and_all_triangles(seed):
    rng = np.random.default_rng(seed)
    faces = load_hand("open").faces
    left = (TEMPLATE_MM - TEMPLATE_MM.mean(0)) * [-1, 1, 1] @ Rotation.random(rng=rng).as_matrix().T
    left = left + TEMPLATE_MM.mean(0) + rng.normal(0, 15, 3)
    depths = [0.0]
    for points, triangles in ((TEMPLATE_MM, left[faces]), (left, TEMPLATE_MM[faces])):
        for block in np.array_split(points, 8):
            inside = np.abs(winding_numbers(block, triangles)) > 0.5
            depths += surface_distances(block[inside], triangles).tolist()
    assert penetration_mm(TEMPLATE_MM, left, faces) == pytest.approx(max(depths), abs=1e-9)
    assert max(depths) > 1
