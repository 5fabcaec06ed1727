"""Rasterise scenes to visible surface samples with position, normal and depth.

Each pixel has four coverage samples, for a smooth outline, and takes its colour from one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from annotator.render import nearest_faces
from trainer.synth.figure import OBJECT_A, Figure
from trainer.synth.objects import ANGULAR
from trainer.synth.scene import Scene


@dataclass(frozen=True, eq=False)
class Samples:
    """N visible samples of B photos of side S, ordered by photo. Vectors are planar, (3, N)."""

    pixel: Tensor  # (N,) index into B * S * S
    photo: Tensor  # (N,)
    count_of_photo: list[int]  # B numbers with sum N
    face: Tensor  # (N,)
    corners: Tensor  # (3, N) vertices of the face; each photo's vertices follow those of the previous one
    weights: Tensor  # (3, N) of the corners, perspective-correct
    normal: Tensor  # (3, N) unit, camera axes, on the visible side
    view: Tensor  # (3, N) unit, towards the camera
    depth_mm: Tensor  # (B, S, S), infinite on the background
    cover: Tensor  # (B, 1, S, S) share of the pixel
    hand_cover: Tensor  # (B, 1, S, S) share of the pixel covered by the visible hand


def samples(figure: Figure, scene: Scene, size_px: int) -> Samples:
    """Return the visible samples of photos of size_px x size_px."""
    points = scene.raster_points()
    count, vertex_count = points.shape[:2]
    front = _front_faces(points, figure.faces)
    ids = nearest_faces(front.corners, front.triangles, 2 * size_px)
    ids = ids.view(count, size_px, 2, size_px, 2).permute(2, 4, 0, 1, 3)
    quad = ids.to(torch.int32, memory_format=torch.contiguous_format).reshape(4, count, size_px, size_px)
    covered = [q >= 0 for q in quad]
    # Faces are in the figure's order: the hand comes first.
    hand = front.before(figure.face_count)[:, None, None]
    shape = (count, 1, size_px, size_px)
    cover = _share(covered).view(shape)
    hand_cover = _share([c & (q < hand) for c, q in zip(covered, quad, strict=True)]).view(shape)
    pixel = cover.view(-1).nonzero().squeeze(1)
    photo = torch.div(pixel, size_px**2, rounding_mode="floor")
    at = pixel - photo * size_px**2
    row = torch.div(at, size_px, rounding_mode="floor")
    column = at - row * size_px
    seen = [q.view(-1).index_select(0, pixel) for q in quad]
    # The first or last of four, alternating, so that colours stay centred; any other if it is empty.
    own = torch.where(seen[0] >= 0, 0, torch.where(seen[1] >= 0, 1, torch.where(seen[2] >= 0, 2, 3)))
    own = torch.where(((row + column) % 2 == 1) & (seen[3] >= 0), 3, own)
    local = torch.where(
        own < 2, torch.where(own == 0, seen[0], seen[1]), torch.where(own == 2, seen[2], seen[3])
    )
    face = front.face[photo, local]
    x = (column * 2 + own % 2 + 0.5) / size_px - 1
    y = (row * 2 + torch.div(own, 2, rounding_mode="floor") + 0.5) / size_px - 1

    corners = figure.faces.t().contiguous().index_select(1, face) + photo * vertex_count
    flat_corners = corners.view(-1)

    def at_corners(values: Tensor) -> Tensor:
        """Return values (B, N) or (B * N,) at the corners, (3, N)."""
        return values.reshape(-1).index_select(0, flat_corners).view(3, -1)

    dx, dy, nearness = (
        at_corners(points[..., 0]) - x,
        at_corners(points[..., 1]) - y,
        at_corners(points[..., 2]),
    )
    areas = torch.stack(
        [dx[1] * dy[2] - dx[2] * dy[1], dx[2] * dy[0] - dx[0] * dy[2], dx[0] * dy[1] - dx[1] * dy[0]]
    )
    areas = (areas * (areas[0] + areas[1] + areas[2]).sign()).clamp(min=1e-30)
    # Perspective: weights over depth are linear in the image.
    weights = areas * nearness
    total = weights[0] + weights[1] + weights[2]
    weights = weights / total
    depth_mm = torch.full((count * size_px**2,), torch.inf, device=points.device)
    depth_mm = depth_mm.index_copy(0, pixel, (areas[0] + areas[1] + areas[2]) * -1000 / total)

    of_vertices, of_faces = normals(torch.cat([scene.vertices_mm, scene.others_mm], 1), figure.faces)
    bent = torch.stack([dot(weights, at_corners(of_vertices[..., k])) for k in range(3)])
    own_normal = of_faces.view(-1, 3).index_select(0, photo * len(figure.faces) + face).t()
    material = figure.material.index_select(0, face)
    angular = torch.tensor(ANGULAR, device=points.device)[scene.object_kind].view(-1)
    is_flat = (material >= OBJECT_A) & angular[photo * 2 + (material - OBJECT_A).clamp(min=0)]
    normal = unit(torch.where(is_flat, own_normal, bent))
    focal = scene.focal.index_select(0, photo)
    away = scene.ray.index_select(0, photo)
    view = unit(torch.stack([-x / focal - away[:, 0], -y / focal - away[:, 1], -torch.ones_like(x)]))
    # Back faces, such as the inside of a sleeve, are found by the face, not by its smooth normal.
    normal = normal * torch.where(dot(own_normal, view) < 0, -1.0, 1.0)
    return Samples(
        pixel=pixel,
        photo=photo,
        count_of_photo=torch.bincount(photo, minlength=count).tolist(),
        face=face,
        corners=corners,
        weights=weights,
        normal=normal,
        view=view,
        depth_mm=depth_mm.view(count, size_px, size_px),
        cover=cover,
        hand_cover=hand_cover,
    )


@dataclass(frozen=True, eq=False)
class _Front:
    """The faces of each photo that may be visible: front faces inside the photo."""

    face: Tensor  # (B, K) int64, ascending, padded by -1
    corners: Tensor  # (B, 3 K, 3) for the rasteriser, separate per face
    triangles: Tensor  # (K, 3)

    def before(self, face: int) -> Tensor:
        """Return the number (B,) of them below this face."""
        return ((self.face >= 0) & (self.face < face)).sum(1)


def _front_faces(points: Tensor, faces: Tensor) -> _Front:
    """Select the front faces, about a third of all, which cuts the cost of drawing."""
    count, vertex_count = points.shape[:2]
    x0, x1, x2 = (points[..., 0].index_select(1, faces[:, k]) for k in range(3))
    y0, y1, y2 = (points[..., 1].index_select(1, faces[:, k]) for k in range(3))
    chosen = (x1 - x0) * (y2 - y0) < (x2 - x0) * (y1 - y0)
    for a, b, c in ((x0, x1, x2), (y0, y1, y2)):
        chosen &= torch.minimum(torch.minimum(a, b), c) < 1
        chosen &= torch.maximum(torch.maximum(a, b), c) > -1
    photo, face = chosen.nonzero(as_tuple=True)
    counts = chosen.sum(1)
    index = torch.arange(len(face), device=face.device) - (counts.cumsum(0) - counts).index_select(0, photo)
    kept = max(int(counts.max()), 1)
    rows = photo * kept + index
    # Padding draws nothing.
    corners = torch.full((count * kept, 9), torch.nan, device=face.device)
    three = faces.index_select(0, face) + photo[:, None] * vertex_count
    corners.index_copy_(0, rows, points.reshape(-1, 3).index_select(0, three.view(-1)).view(-1, 9))
    return _Front(
        torch.full((count * kept,), -1, device=face.device).index_copy(0, rows, face).view(count, kept),
        corners.view(count, kept * 3, 3),
        torch.arange(3 * kept, device=face.device).view(-1, 3),
    )


def _share(four: list[Tensor]) -> Tensor:
    """Return the share of four masks that are true: 0, 1/4 ... 1."""
    return (four[0].byte() + four[1] + four[2] + four[3]).float() / 4


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot product of planar vectors (3, N), (N,)."""
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])


def normals(points: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit normals of vertices (B, N, 3), and normals of faces (B, F, 3) of any length."""
    a, b, c = (points.index_select(1, faces[:, k]) for k in range(3))
    of_faces = torch.linalg.cross(b - a, c - a)
    of_vertices = torch.zeros_like(points)
    for k in range(3):
        of_vertices.index_add_(1, faces[:, k], of_faces)
    return torch.nn.functional.normalize(of_vertices, dim=-1), of_faces


def unit(vectors: Tensor) -> Tensor:
    """Normalise planar vectors (3, N)."""
    return vectors * dot(vectors, vectors).clamp(min=1e-20).rsqrt()
