"""The two backends agree. nvdiffrast is imported within the tests, so that any machine can collect them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from annotator.render import Fragments, interpolate, nearest_faces, rasterize, visible_vertices


@pytest.fixture(autouse=True)
def _nvdiffrast() -> None:
    pytest.importorskip("nvdiffrast.torch", reason="needs the extra 'gpu'")


def bumpy_balls(batch: int, rings: int = 24) -> tuple[Tensor, Tensor]:
    """Closed meshes (B, V, 3) and their faces, on the GPU; depths in another unit than x and y."""
    angle, tilt = torch.meshgrid(
        torch.arange(rings) * (2 * math.pi / rings),
        torch.linspace(0.01, math.pi - 0.01, rings),
        indexing="ij",
    )
    ball = torch.stack([angle.cos() * tilt.sin(), angle.sin() * tilt.sin(), tilt.cos()], -1).reshape(1, -1, 3)
    a = torch.arange(rings * rings).reshape(rings, rings)[:, :-1].reshape(-1)
    b = (a + rings) % rings**2
    faces = torch.cat([torch.stack([a, b, a + 1], 1), torch.stack([b + 1, a + 1, b], 1)])
    bumps = 1 + 0.3 * torch.rand(batch, rings**2, 1, generator=torch.Generator().manual_seed(0))
    points = ball * bumps * torch.tensor([0.7, 0.7, 90]) + torch.tensor([0.1, -0.05, 600])
    return points.cuda(), faces.cuda()


def both(points: Tensor, faces: Tensor, size_px: int) -> tuple[Fragments, Fragments]:
    return rasterize(points, faces, size_px, "torch"), rasterize(points, faces, size_px, "nvdiffrast")


@pytest.mark.parametrize("size_px", [64, 129, 224])
def test_face_ids_are_equal_but_within_a_sixteenth_of_a_pixel_of_an_edge(size_px):
    points, faces = bumpy_balls(4)
    ours, theirs = both(points, faces, size_px)
    covered = (ours.face_ids >= 0) & (theirs.face_ids >= 0)
    # Both name the same pixels covered but at the silhouette, and the image is upright and not mirrored.
    assert ((ours.face_ids >= 0) != (theirs.face_ids >= 0)).float().mean() < 0.01
    differ = (ours.face_ids != theirs.face_ids) & covered
    # Either face may have gained or lost the pixel.
    to_edge_px = torch.minimum(
        height_over_nearest_edge_px(points, faces, ours.face_ids),
        height_over_nearest_edge_px(points, faces, theirs.face_ids),
    )
    assert (to_edge_px[differ] < 0.2).all()
    assert differ.float().mean() < 0.1


def height_over_nearest_edge_px(points: Tensor, faces: Tensor, face_ids: Tensor) -> Tensor:
    size_px = face_ids.shape[-1]
    centre = (torch.arange(size_px, device=points.device) * 2 + 1) / size_px - 1
    pixel = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1)
    image = torch.arange(len(points), device=points.device)[:, None, None, None]
    corner = points[image, faces[face_ids.clamp(min=0)], :2]  # (B, H, W, 3, 2)
    side = corner.roll(-1, -2) - corner
    out = pixel[:, :, None] - corner
    cross = side[..., 0] * out[..., 1] - side[..., 1] * out[..., 0]
    return (cross.abs() / side.norm(dim=-1).clamp(min=1e-9)).amin(-1) * size_px / 2


def test_a_single_triangle_in_the_upper_left_is_drawn_there_with_its_own_weights():
    points = torch.tensor([[[-0.9, -0.9, 3.0], [-0.1, -0.9, 3.0], [-0.9, -0.1, 3.0]]]).cuda()
    fragments = rasterize(points, torch.tensor([[0, 1, 2]]).cuda(), 16, "nvdiffrast")
    covered = fragments.face_ids[0] >= 0
    assert covered[:8, :8].sum() == covered.sum() > 10
    at = fragments.barycentrics[0, 2, 4]  # column 4, row 2
    x, y = 9 / 16 - 1, 5 / 16 - 1
    u, v = (x + 0.9) / 0.8, (y + 0.9) / 0.8
    torch.testing.assert_close(at.cpu(), torch.tensor([1 - u - v, u, v]), atol=1e-5, rtol=0)


def test_interpolated_colours_agree_to_a_thousandth_where_the_faces_do():
    points, faces = bumpy_balls(4)
    colours = torch.rand(4, points.shape[1], 3, generator=torch.Generator().manual_seed(1)).cuda()
    ours, theirs = both(points, faces, 128)
    same = ours.face_ids == theirs.face_ids
    assert same.float().mean() > 0.9
    a, b = interpolate(ours, colours, faces), interpolate(theirs, colours, faces)
    assert (a - b).abs()[same].max() < 1e-3


def test_nvdiffrasts_own_interpolation_agrees_too():
    # Independent of our barycentrics: its order of weights, its row order and our reading of both.
    import nvdiffrast.torch as dr

    from annotator.render.nvdiffrast_backend import clip_space

    points, faces = bumpy_balls(2)
    colours = torch.rand(2, points.shape[1], 3, generator=torch.Generator().manual_seed(2)).cuda()
    clip = clip_space(points, torch.ones_like(points[..., 0], dtype=torch.bool))
    context = dr.RasterizeCudaContext(device=points.device)
    drawn, _ = dr.rasterize(context, clip, faces.int(), (128, 128))
    image, _ = dr.interpolate(colours.contiguous(), drawn, faces.int())
    ours = rasterize(points, faces, 128, "torch")
    same = ours.face_ids == drawn[..., 3].long() - 1
    assert same.float().mean() > 0.9
    assert (interpolate(ours, colours, faces) - image).abs()[same].max() < 1e-3


def test_gradients_agree_where_the_faces_do():
    points, faces = bumpy_balls(2)
    colours = torch.rand(2, points.shape[1], 3, generator=torch.Generator().manual_seed(3)).cuda()
    ours, theirs = (nearest_faces(points, faces, 96, backend) for backend in ("torch", "nvdiffrast"))
    same = ((ours == theirs) & (ours >= 0))[..., None]
    gradients = []
    for backend in ("torch", "nvdiffrast"):
        inputs = points.clone().requires_grad_(), colours.clone().requires_grad_()
        image = interpolate(rasterize(inputs[0], faces, 96, backend), inputs[1], faces)
        gradients.append(torch.autograd.grad((image * same).square().sum(), inputs))
    for a, b in zip(*gradients, strict=True):
        assert a.abs().max() > 0.1
        torch.testing.assert_close(a, b, atol=1e-3 * a.abs().max().item(), rtol=1e-3)


def test_the_backends_call_the_same_vertices_visible():
    points, faces = bumpy_balls(4)
    ours, theirs = (
        visible_vertices(nearest_faces(points, faces, 224, backend), faces, points.shape[1])
        for backend in ("torch", "nvdiffrast")
    )
    assert (ours != theirs).float().mean() < 0.02


def test_nan_points_draw_nothing_and_spare_the_rest():
    points, faces = bumpy_balls(3)
    points[1] = math.nan
    points[2, 5, 1] = math.inf
    ours, theirs = both(points, faces, 64)
    assert (theirs.face_ids[1] == -1).all()
    assert (ours.face_ids == theirs.face_ids)[2].float().mean() > 0.9
    assert torch.isfinite(theirs.barycentrics).all()
    points[:] = math.nan
    assert (nearest_faces(points, faces, 64, "nvdiffrast") == -1).all()


def test_auto_takes_nvdiffrast_on_cuda():
    points, faces = bumpy_balls(1)
    assert torch.equal(nearest_faces(points, faces, 64), nearest_faces(points, faces, 64, "nvdiffrast"))


def test_the_torch_backend_draws_the_same_on_cuda_as_on_the_cpu():
    points, faces = bumpy_balls(2)
    cuda, cpu = (
        nearest_faces(points, faces, 128, "torch"),
        nearest_faces(points.cpu(), faces.cpu(), 128, "torch"),
    )
    assert (cuda.cpu() != cpu).float().mean() < 1e-3
