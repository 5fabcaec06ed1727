from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from torch import Tensor

from annotator.errors import UserError
from annotator.render import covered, interpolate, nearest_faces, rasterize, torch_backend, visible_vertices

ONE = torch.tensor([[0, 1, 2]])


def from_pixels(points_px: list[list[float]], size_px: int) -> Tensor:
    """Return points (1, V, 3) from x, y in pixels (centres at half integers) and z."""
    points = torch.tensor([points_px], dtype=torch.float32)
    points[..., :2] = points[..., :2] * 2 / size_px - 1
    return points


def naive(points: Tensor, faces: Tensor, size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test every pixel with every triangle, in float64: return ids, barycentrics, and undecidable pixels."""
    ids = np.full((len(points), size_px, size_px), -1)
    weights = np.zeros((*ids.shape, 3))
    close = np.zeros(ids.shape, bool)
    for b, mesh in enumerate(points.double().numpy()):
        for row in range(size_px):
            for column in range(size_px):
                x, y = (2 * column + 1) / size_px - 1, (2 * row + 1) / size_px - 1
                best = second = math.inf
                for f, face in enumerate(faces.tolist()):
                    (x0, y0, z0), (x1, y1, z1), (x2, y2, z2) = mesh[face]
                    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
                    if not np.isfinite(mesh[face]).all() or area == 0:
                        continue
                    a = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / area
                    c = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) / area
                    w = np.array([a, c, 1 - a - c])
                    longest = max(math.hypot(x1 - x0, y1 - y0), math.hypot(x2 - x1, y2 - y1), 1e-9)
                    # The distance from an edge is weight times height; the height is at least |area| / longest.
                    if abs(w).min() * abs(area) / longest < 1e-5 and w.min() > -0.1:
                        close[b, row, column] = True
                    if w.min() < 0:
                        continue
                    depth = w @ [z0, z1, z2]
                    if depth < best:
                        best, second = depth, best
                        ids[b, row, column], weights[b, row, column] = f, w
                    else:
                        second = min(second, depth)
                close[b, row, column] |= second - best < 1e-4
    return ids, weights, close


def ball(vertex_count: int) -> tuple[Tensor, Tensor]:
    i = np.arange(vertex_count) + 0.5
    height, rotation = 1 - 2 * i / vertex_count, np.pi * (1 + 5**0.5) * i
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(rotation), radius * np.sin(rotation), height], 1)
    return torch.tensor(points, dtype=torch.float32)[None], torch.tensor(ConvexHull(points).simplices).long()


def test_one_triangle_covers_exactly_the_pixel_centres_inside_it():
    # Right angle at (1, 1), legs of 4: the centre of pixel i, j is inside if (i - 1/2) + (j - 1/2) <= 4.
    points = from_pixels([[1, 1, 0], [5, 1, 0], [1, 5, 0]], 8)
    ids = rasterize(points, ONE, 8, "torch").face_ids[0]
    expected = [[0 if i >= 1 and j >= 1 and i + j <= 5 else -1 for i in range(8)] for j in range(8)]
    assert ids.tolist() == expected


def test_barycentrics_of_one_triangle_are_its_closed_form():
    points = from_pixels([[1, 1, 0], [5, 1, 0], [1, 5, 0]], 8)
    weights = rasterize(points, ONE, 8, "torch").barycentrics[0]
    u, v = (2.5 - 1) / 4, (3.5 - 1) / 4  # the centre of pixel (column 2, row 3)
    torch.testing.assert_close(weights[3, 2], torch.tensor([1 - u - v, u, v]))
    assert weights[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]])
def test_corner_order_changes_nothing_but_the_order_of_barycentrics(order):
    points = from_pixels([[1.2, 0.7, 0], [7.1, 2.4, 0], [3.3, 6.9, 0]], 8)
    plain = rasterize(points, ONE, 8, "torch")
    rotated = rasterize(points, torch.tensor([order]), 8, "torch")
    assert torch.equal(plain.face_ids, rotated.face_ids)
    torch.testing.assert_close(rotated.barycentrics, plain.barycentrics[..., order])


def test_covered_pixels_count_the_area():
    points = torch.tensor([[[-0.9, -0.7, 0], [0.8, -0.5, 0], [0.1, 0.95, 0]]])
    (x0, y0), (x1, y1), (x2, y2) = points[0, :, :2].tolist()
    area = abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) / 2
    covered = (nearest_faces(points, ONE, 512, "torch") >= 0).float().mean().item() * 4
    assert covered == pytest.approx(area, rel=2e-3)


def test_of_two_crossing_triangles_the_nearer_wins_on_each_side_of_the_crossing():
    # Both cover the image; depths x and 0.25 - x are equal at x = 0.125, between two columns of 16.
    corners = [[-4, -4], [4, -4], [0, 8]]
    points = torch.tensor([[[x, y, x] for x, y in corners] + [[x, y, 0.25 - x] for x, y in corners]])
    ids = nearest_faces(points, torch.tensor([[0, 1, 2], [3, 4, 5]]), 16, "torch")[0]
    centres = (torch.arange(16) + 0.5) / 8 - 1
    assert torch.equal(ids, (centres > 0.125).long().expand(16, 16))


def test_equal_depths_go_to_the_lower_face_id():
    points = from_pixels([[0, 0, 1], [8, 0, 1], [0, 8, 1]], 8)
    ids = nearest_faces(points, torch.tensor([[1, 2, 0], [0, 1, 2], [2, 0, 1]]), 8, "torch")
    assert ids.max() == 0


def test_depths_a_millionth_of_their_range_apart_are_distinguished():
    corners = [[-4, -4], [4, -4], [0, 8]]
    z = (1.0, 0.999999)
    points = torch.tensor([[[x, y, z[k]] for k in range(2) for x, y in corners] + [[9, 9, 0]]]) * 600
    ids = nearest_faces(points, torch.tensor([[0, 1, 2], [3, 4, 5]]), 4, "torch")
    assert (ids == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_random_soups_agree_with_a_naive_loop(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    size_px = 20
    points = torch.randn(2, 18, 3, generator=generator, dtype=dtype) * torch.tensor([0.9, 0.9, 50])
    points = points * torch.tensor([1.0, 4.0]).reshape(2, 1, 1)  # the second image partly off screen
    faces = torch.randint(0, 18, (14, 3), generator=generator)  # some have a corner twice
    fragments = rasterize(points, faces, size_px, "torch")
    ids, weights, close = naive(points, faces, size_px)
    assert close.mean() < 0.05  # a triangle drawn twice is a tie everywhere
    np.testing.assert_array_equal(fragments.face_ids.numpy()[~close], ids[~close])
    np.testing.assert_allclose(fragments.barycentrics.numpy()[~close], weights[~close], atol=1e-4)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(st.tuples(*[st.integers(-3, 11)] * 2), min_size=4, max_size=9),
    st.sampled_from([4, 7, 8]),
)
def test_corners_on_whole_and_half_pixels_agree_with_a_naive_loop(corners_half_px, size_px):
    # Coarse grids produce centres on edges and corners, horizontal and vertical sides, flat triangles.
    points = from_pixels([[x / 2, y / 2, k] for k, (x, y) in enumerate(corners_half_px)], size_px)
    faces = torch.tensor([[k, k + 1, k + 2] for k in range(len(corners_half_px) - 2)])
    found = nearest_faces(points, faces, size_px, "torch").numpy()
    ids, _, close = naive(points, faces, size_px)
    np.testing.assert_array_equal(found[~close], ids[~close])


def test_a_mesh_whose_corners_and_edges_lie_on_pixel_centres_has_no_cracks():
    # A grid with corners on pixel centres and jitter inside: every pixel within its outline is covered.
    generator = torch.Generator().manual_seed(0)
    n, size_px = 9, 64
    grid = torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing="xy"), -1).float() * 7 + 4.5
    for shake in (0.0, 1.0, 2.7, 1e-6):
        moved = grid.clone()
        inside = torch.randn(n - 2, n - 2, 2, generator=generator) * shake
        moved[1:-1, 1:-1] += inside.round() if shake == 1.0 else inside
        points = torch.cat([moved * 2 / size_px - 1, torch.zeros(n, n, 1)], -1).reshape(1, -1, 3)
        corner = (torch.arange(n - 1)[:, None] * n + torch.arange(n - 1)).reshape(-1)
        faces = torch.cat(
            [
                torch.stack([corner, corner + 1, corner + n], 1),
                torch.stack([corner + n + 1, corner + n, corner + 1], 1),
            ]
        )
        ids = nearest_faces(points, faces, size_px, "torch")[0]
        first, last = 4, 4 + 7 * (n - 1)
        assert (ids[first : last + 1, first : last + 1] >= 0).all()
        assert (ids >= 0).sum() == (last - first + 1) ** 2


def test_a_pixel_whose_centre_is_a_corner_or_on_an_upright_side_is_covered():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(400, 3, 3, generator=generator) * 2 - 1
    corner = torch.randint(0, 64, (400, 2), generator=generator)
    points[:, 0, :2] = (corner + 0.5) / 32 - 1
    points[200:, 1, 0] = points[200:, 0, 0]
    covered = nearest_faces(points, ONE, 64, "torch") >= 0
    image = torch.arange(400)
    assert covered[image, corner[:, 1], corner[:, 0]].all()
    for k in range(200, 400):
        upright = ((points[k, :2, 1] + 1) * 32 - 0.5).sort().values
        rows = torch.arange(int(upright[0].ceil()), int(upright[1].floor()) + 1)
        assert covered[k, rows, corner[k, 0]].all()


def test_a_closed_ball_has_no_holes_in_float32():
    points, faces = ball(700)
    points = points.repeat(8, 1, 1) * torch.linspace(0.3, 0.9, 8)[:, None, None]
    ids = nearest_faces(points, faces, 150, "torch") >= 0
    for image in ids:
        rows = image[image.any(1)].int()
        # Each covered row is one run: no pixel missing between its ends.
        assert ((rows.diff(dim=1) != 0).sum(1) == 2).all()


def test_flat_nan_and_infinite_triangles_draw_nothing_and_spare_the_rest():
    nan, inf = math.nan, math.inf
    good = [[-0.8, -0.8, 5], [0.8, -0.8, 5], [0, 0.8, 5]]
    flat = [[-1, 0, 0], [0, 0, 0], [1, 0, 0]]
    point = [[0.125, 0.125, 0]] * 3
    broken = [[nan, 0, 0], [1, 1, 0], [-1, 1, 0]], [[0, 0, 0], [1, inf, 0], [-1, 1, 0]]
    deep = [[-1, -1, 0], [1, -1, -inf], [0, 1, 0]]
    huge = [[-1e30, -1e30, 0], [1e30, -1e30, 0], [0, 1e30, 0]]
    points = torch.tensor([[*flat, *point, *broken[0], *broken[1], *deep, *huge, *good]])
    faces = torch.arange(21).reshape(7, 3)
    points.requires_grad_()
    fragments = rasterize(points, faces, 8, "torch")
    alone = rasterize(points[:, 18:].detach(), ONE, 8, "torch")
    assert torch.equal(fragments.face_ids >= 0, alone.face_ids >= 0)
    assert set(fragments.face_ids.unique().tolist()) == {-1, 6}
    torch.testing.assert_close(fragments.barycentrics, alone.barycentrics)
    fragments.barycentrics.square().sum().backward()
    assert torch.isfinite(points.grad).all()


def test_an_image_of_nan_points_is_empty_and_its_neighbour_is_not():
    points = from_pixels([[1, 1, 0], [7, 1, 0], [1, 7, 0]], 8).repeat(2, 1, 1)
    points[0] = math.nan
    ids = nearest_faces(points, ONE, 8, "torch")
    assert (ids[0] == -1).all() and (ids[1] == 0).any()


def test_huge_triangles_fill_the_image_in_pieces(monkeypatch):
    points = torch.tensor([[[-1e6, -1e6, 0], [1e6, -1e6, 0], [0, 1e6, 0]]]).repeat(2, 1, 1)
    points[1] *= 1e-3
    faces = ONE.repeat(40, 1)
    whole = nearest_faces(points, faces, 40, "torch")
    assert (whole == 0).all()
    monkeypatch.setattr(torch_backend, "PIECE", 37)
    assert torch.equal(nearest_faces(points, faces, 40, "torch"), whole)


@pytest.mark.parametrize("piece", [1, 100, 5000])
def test_pieces_of_any_size_draw_the_same(monkeypatch, piece):
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(2, 30, 3, generator=generator)
    faces = torch.randint(0, 30, (20, 3), generator=generator)
    whole = nearest_faces(points, faces, 12, "torch")
    monkeypatch.setattr(torch_backend, "PIECE", piece)
    assert torch.equal(nearest_faces(points, faces, 12, "torch"), whole)


@pytest.mark.parametrize(("batch", "vertices", "faces"), [(0, 3, 1), (2, 3, 0), (2, 0, 0), (0, 0, 0)])
def test_empty_input_gives_empty_output(batch, vertices, faces):
    points = torch.zeros(batch, vertices, 3, requires_grad=True)
    triangles = ONE.repeat(faces, 1)
    fragments = rasterize(points, triangles, 6, "torch")
    assert fragments.face_ids.shape == (batch, 6, 6) and (fragments.face_ids == -1).all()
    assert fragments.barycentrics.shape == (batch, 6, 6, 3) and not fragments.barycentrics.any()
    assert interpolate(fragments, torch.ones(batch, vertices, 4), triangles).shape == (batch, 6, 6, 4)
    assert not visible_vertices(fragments.face_ids, triangles, vertices).any()


def test_half_precision_points_draw_as_their_float32():
    points = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(1)).half()
    faces = torch.arange(9).reshape(3, 3)
    half, full = rasterize(points, faces, 16, "torch"), rasterize(points.float(), faces, 16, "torch")
    assert torch.equal(half.face_ids, full.face_ids) and half.barycentrics.dtype == torch.float32


def test_drawing_twice_gives_the_same_bits():
    points, faces = ball(300)
    points = points * torch.rand(3, 300, 1, generator=torch.Generator().manual_seed(0))
    first, second = (rasterize(points, faces, 64, "torch") for _ in range(2))
    assert torch.equal(first.face_ids, second.face_ids)
    assert torch.equal(first.barycentrics, second.barycentrics)


def test_collecting_is_interpolations_transpose():
    points, faces = ball(200)
    points = points.double() * torch.tensor([0.8, 0.5]).view(2, 1, 1)
    fragments = rasterize(points, faces, 24)
    generator = torch.Generator().manual_seed(0)
    attributes = torch.randn(*points.shape[:2], 2, generator=generator, dtype=points.dtype)
    image = torch.randn(len(points), 24, 24, 2, generator=generator, dtype=points.dtype)
    there = (interpolate(fragments, attributes, faces) * image).sum()
    seen = covered(fragments, faces, points.shape[1])
    collected = seen.collect(image.reshape(-1, 2)[seen.pixel], len(points) * points.shape[1])
    back = (collected.reshape(attributes.shape) * attributes).sum()
    torch.testing.assert_close(there, back)


def test_interpolating_the_points_gives_back_pixel_centres():
    points, faces = ball(200)
    fragments = rasterize(points * 0.8, faces, 33, "torch")
    seen = interpolate(fragments, points * 0.8, faces)
    centres = (torch.arange(33) * 2 + 1) / 33 - 1
    covered = fragments.face_ids >= 0
    torch.testing.assert_close(seen[..., 0][covered], centres.expand(1, 33, 33)[covered], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        seen[..., 1][covered], centres[:, None].expand(1, 33, 33)[covered], atol=1e-5, rtol=0
    )
    assert not seen[~covered].any()


def test_gradients_to_colours_and_points_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64) * 0.6
    faces = torch.randint(0, 8, (5, 3), generator=generator)
    colours = torch.rand(2, 8, 2, generator=generator, dtype=torch.float64)
    weight = torch.rand(2, 9, 9, 2, generator=generator, dtype=torch.float64)

    def image(points: Tensor, colours: Tensor) -> Tensor:
        return (interpolate(rasterize(points, faces, 9, "torch"), colours, faces) * weight).sum()

    assert (nearest_faces(points, faces, 9) >= 0).sum() > 20
    inputs = points.requires_grad_(), colours.requires_grad_()
    assert torch.autograd.gradcheck(image, inputs, eps=1e-7, atol=1e-5)
    assert torch.autograd.grad(image(*inputs), inputs)[0][..., :2].abs().max() > 0.1


def test_the_back_of_a_ball_is_hidden_and_its_front_is_not():
    points, faces = ball(400)
    ids = nearest_faces(points * 0.9, faces, 200, "torch")
    visible = visible_vertices(ids, faces, 400)[0]
    depth = points[0, :, 2]
    assert visible[depth < -0.2].all()
    assert not visible[depth > 0.2].any()


def test_an_unknown_backend_is_refused_in_one_line():
    with pytest.raises(UserError, match="auto, torch or nvdiffrast"):
        rasterize(torch.zeros(1, 3, 3), ONE, 4, "opengl")


def test_nvdiffrast_without_cuda_is_refused_in_one_line():
    with pytest.raises(UserError, match="CUDA"):
        rasterize(torch.zeros(1, 3, 3), ONE, 4, "nvdiffrast")
