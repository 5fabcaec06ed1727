"""Results of rasterization, and functions of them, independent of the backend.

A backend only finds the nearest triangle per pixel. Barycentrics are computed here from that triangle, so both
backends give the same values and gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

#: Larger coordinates count as infinite: their products would not fit in float32.
FAR = 1e15


@dataclass(frozen=True, eq=False)
class Fragments:
    """Nearest face per pixel of B square images: H = W = size_px, row 0 at the top."""

    face_ids: Tensor  # (B, H, W) int64, -1 for no face
    barycentrics: (
        Tensor  # (B, H, W, 3) of the face's corners, zero without a face; differentiable in the points
    )


def usable_vertices(points: Tensor) -> Tensor:
    """Return (B, V) bool: finite vertices. A triangle with any other vertex draws nothing."""
    return (points.abs() < FAR).all(-1)


def barycentrics(points: Tensor, faces: Tensor, face_ids: Tensor) -> Tensor:
    """Return the barycentrics (B, H, W, 3) of every pixel centre in its nearest face, linear in screen space.

    A backend's rounding may assign a centre to a face it lies just outside of (nvdiffrast snaps corners to a
    sixteenth of a pixel). Its weights are still non-negative and sum to 1. No gradient passes through `face_ids`, so
    none comes from a moving silhouette.
    """
    seen = cover(points, faces, face_ids)
    image = seen.weights.new_zeros(3, face_ids.numel()).index_copy(1, seen.pixel, seen.weights)
    return image.reshape(3, *face_ids.shape).permute(1, 2, 3, 0)


class Covered(NamedTuple):
    """The N covered pixels of B images, as a linear map between vertices and pixels.

    Vertices are flat here: row b * V + v of (B * V, C) is vertex v of image b.
    """

    pixel: Tensor  # (N,) of B * H * W
    corners: Tensor  # (3, N) of B * V
    weights: Tensor  # (3, N), barycentrics

    def paint(self, vertices: Tensor) -> Tensor:
        """Interpolate attributes (B * V, C) at the pixels: (N, C)."""
        first, second, third = (
            weight[:, None] * vertices.index_select(0, corner)
            for weight, corner in zip(self.weights, self.corners, strict=True)
        )
        return first + second + third

    def collect(self, pixels: Tensor, count: int) -> Tensor:
        """Apply the transpose of `paint`: return per vertex (`count` = B * V) the weighted sum of its pixels (N, C)."""
        vertices = pixels.new_zeros(count, pixels.shape[-1])
        for weight, corner in zip(self.weights, self.corners, strict=True):
            vertices = vertices.index_add(0, corner, weight[:, None] * pixels)
        return vertices


def cover(points: Tensor, faces: Tensor, face_ids: Tensor) -> Covered:
    """Return the covered pixels of nearest faces (B, H, W) of meshes with points (B, V, 3) and `faces` (F, 3)."""
    size_px = face_ids.shape[-1]
    pixel, at, corners = _covered(faces, face_ids, points.shape[1])
    centre = (torch.arange(size_px, device=points.device, dtype=points.dtype) * 2 + 1) / size_px - 1
    x0, x1, x2 = _at_corners(points[..., 0], corners) - centre.repeat(size_px).index_select(0, at)
    y0, y1, y2 = _at_corners(points[..., 1], corners) - centre.repeat_interleave(size_px).index_select(0, at)
    areas = torch.stack([x1 * y2 - x2 * y1, x2 * y0 - x0 * y2, x0 * y1 - x1 * y0])
    # The floor is far below any visible area; a face without area gets three equal weights.
    areas = (areas * areas.detach().sum(0).sign()).clamp(min=1e-30)
    return Covered(pixel, corners, areas / areas.sum(0))


def covered(fragments: Fragments, faces: Tensor, vertex_count: int) -> Covered:
    """Return the covered pixels of `fragments`, for meshes with `vertex_count` vertices and `faces` (F, 3)."""
    pixel, _, corners = _covered(faces, fragments.face_ids, vertex_count)
    weights = fragments.barycentrics.permute(3, 0, 1, 2).reshape(3, -1).index_select(1, pixel)
    return Covered(pixel, corners, weights)


def interpolate(fragments: Fragments, attributes: Tensor, faces: Tensor) -> Tensor:
    """Interpolate vertex attributes (B, V, C) at every pixel: (B, H, W, C), zero outside the mesh.

    Differentiable in the attributes and, through the barycentrics, in the points. `faces` (F, 3) int64 are
    the rasterized ones.
    """
    face_ids, channels = fragments.face_ids, attributes.shape[-1]
    coverage = covered(fragments, faces, attributes.shape[1])
    values = coverage.paint(attributes.reshape(-1, channels))
    image = values.new_zeros(face_ids.numel(), channels).index_put((coverage.pixel,), values)
    return image.reshape(*face_ids.shape, channels)


def reverse_interpolate(features: Tensor, points: Tensor) -> Tensor:
    """Sample a map (B, C, H, W) bilinearly at points (B, N, 2): (B, N, C); points outside take the edge's value.

    -1 to 1 spans the map, and cells lie in the middle of their shares, like the pixels of a crop. A backbone's first
    map is shifted: convert points for it with `Backbone.in_map`.
    """
    sampled = grid_sample(features, points[:, None], padding_mode="border", align_corners=False)
    return sampled[:, :, 0].transpose(1, 2)


def visible_vertices(face_ids: Tensor, faces: Tensor, vertex_count: int) -> Tensor:
    """Return (B, V) bool: vertices of triangles that won a pixel (paper, section 3.4: the occlusion mask)."""
    batch, face_count = len(face_ids), len(faces)
    won = torch.zeros(batch, face_count + 1, dtype=torch.bool, device=face_ids.device)
    won.scatter_(1, face_ids.flatten(1) + 1, True)
    image, face = won[:, 1:].nonzero(as_tuple=True)
    visible = torch.zeros(batch, vertex_count, dtype=torch.bool, device=face_ids.device)
    visible[image[:, None], faces[face]] = True
    return visible


def _covered(faces: Tensor, face_ids: Tensor, vertex_count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return flat indices of the N covered pixels (N,), the same within their images, and those of their corners.

    Corners (3, N) are flat among B * V vertices.
    """
    ids = face_ids.flatten(1)
    image, at = (ids >= 0).nonzero(as_tuple=True)
    pixel = image * ids.shape[1] + at
    corners = faces.t().contiguous().index_select(1, ids.reshape(-1).index_select(0, pixel))
    return pixel, at, corners + image * vertex_count


def _at_corners(values: Tensor, corners: Tensor) -> Tensor:
    """Return the values (B, V) at flat indices (3, N)."""
    return values.reshape(-1).index_select(0, corners.reshape(-1)).reshape(corners.shape)
