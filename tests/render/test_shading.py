from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull
from torch import Tensor

from annotator.render.shading import draw, vertex_normals


@pytest.fixture(scope="module")
def ball() -> tuple[Tensor, Tensor]:
    """Return the unit sphere (1, V, 3) and its faces, counter-clockwise seen from outside."""
    i = np.arange(900) + 0.5
    height, rotation = 1 - i / 450, np.pi * (1 + 5**0.5) * i
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(rotation), radius * np.sin(rotation), height], 1)
    hull = ConvexHull(points)
    a, b, c = (points[hull.simplices[:, k]] for k in range(3))
    inward = (np.cross(b - a, c - a) * hull.equations[:, :3]).sum(1) < 0
    faces = np.where(inward[:, None], hull.simplices[:, ::-1], hull.simplices)
    return torch.tensor(points, dtype=torch.float32)[None], torch.tensor(faces.copy()).long()


def white(points: Tensor) -> Tensor:
    return torch.ones_like(points)


def test_normals_of_a_sphere_are_its_points(ball):
    points, faces = ball
    normals = vertex_normals(points * 0.01, faces)
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(1, 900))
    assert (normals * points).sum(-1).min() > 0.99


def test_normals_weigh_faces_by_area():
    # A small face in the plane z = 0 and one nine times as large in x = 0 meet at the origin.
    points = torch.tensor([[[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 3, 0], [0, 0, 3.0]]])
    faces = torch.tensor([[0, 1, 2], [0, 3, 4]])
    expected = torch.tensor([9.0, 0, 1]) / math.hypot(9, 1)
    torch.testing.assert_close(vertex_normals(points, faces)[0, 0], expected)


def test_a_vertex_without_faces_has_a_zero_normal():
    points = torch.rand(1, 4, 3)
    assert vertex_normals(points, torch.tensor([[0, 1, 2]]))[0, 3].tolist() == [0, 0, 0]


def test_the_light_comes_from_the_upper_left_front_by_default(ball):
    points, faces = ball
    image = draw(points * 0.9, faces, white(points), 60)[0, ..., :3].mean(-1)
    assert image[18, 18] > image[42, 42] + 0.2
    assert image[18, 18] > image[18, 42] > image[42, 42]
    lit = draw(points * 0.9, faces, white(points), 60, light=(1, 0, -0.5))[0, ..., :3].mean(-1)
    assert lit[30, 50] > lit[30, 10] + 0.2
    assert lit[10, 30] == pytest.approx(lit[50, 30].item(), abs=0.02)


def test_each_mesh_may_have_a_light_of_its_own(ball):
    points, faces = ball
    lights = torch.tensor([[1.0, 0, -0.5], [0, -2.0, -1]])
    both = draw(points.repeat(2, 1, 1) * 0.9, faces, white(points).repeat(2, 1, 1), 32, light=lights)
    for k in range(2):
        torch.testing.assert_close(
            both[k : k + 1], draw(points * 0.9, faces, white(points), 32, light=lights[k])
        )


def test_no_visible_pixel_is_black_or_brighter_than_its_colour(ball):
    points, faces = ball
    for light in ((0, 0, 1), (0, 0, -1), (-1, -1, 0)):
        image = draw(points * 0.9, faces, white(points) * 0.8, 48, light=light)[0]
        seen = image[..., 3] > 0
        assert image[..., :3][seen].min() > 0.15
        assert image[..., :3].max() <= 0.8 + 1e-5
    assert draw(points * 0.9, faces, white(points), 48, light=(0, 0, -1))[0, 24, 24, 0] > 0.97


def test_mirrored_winding_changes_nothing(ball):
    points, faces = ball
    ours, flipped = (draw(points * 0.9, f, white(points), 48) for f in (faces, faces.flip(1)))
    torch.testing.assert_close(ours, flipped, atol=1e-4, rtol=0)


def test_alpha_is_the_covered_share_and_colours_are_not_darkened_by_it():
    # A square whose right edge lies at 3/8 of pixel 5: at 4 samples, 2 of them at 1/8 and 3/8 are covered.
    x = (5 + 3 / 8) * 2 / 8 - 1
    points = torch.tensor([[[-1, -1, 0], [x, -1, 0], [-1, 1, 0], [x, 1, 0]]])
    faces = torch.tensor([[0, 1, 2], [3, 2, 1]])
    colour = torch.tensor([0.5, 0.25, 1.0]).expand(1, 4, 3)
    row = draw(points, faces, colour, 8, supersample=4, light=(0, 0, -1))[0, 3]
    torch.testing.assert_close(row[:, 3], torch.tensor([1, 1, 1, 1, 1, 0.5, 0, 0]))
    torch.testing.assert_close(row[5, :3], colour[0, 0])
    assert row[6:].abs().max() == 0


def test_an_empty_mesh_and_nan_points_draw_without_error(ball):
    points, faces = ball
    assert draw(points, faces[:0], white(points), 8).abs().max() == 0
    broken = points.clone() * 0.9
    broken[0, faces[0, 0]] = math.nan
    image = draw(broken, faces, white(points), 32)
    assert torch.isfinite(image).all()
    assert image[..., 3].sum() > 0.9 * draw(points * 0.9, faces, white(points), 32)[..., 3].sum()
