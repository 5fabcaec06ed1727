"""A z-buffer in pure torch, on any device: triangles to rows, rows to spans of pixels, one minimum per pixel.

Each triangle is cut into pixel rows. In a row it covers the closed span between its two sides. A pixel is covered
when its centre lies in the span. Edges are always traversed from the upper to the lower end. So two triangles with a
common edge compute exactly the same crossing, and no pixel falls between them. Spans contain only covered pixels,
about half of a bounding box, and need only a depth per pixel. The nearest face is then the smallest key (depth, face
id), by one `scatter_reduce(amin)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from annotator.render.fragments import usable_vertices

#: Rows or pixels expanded at once: limits the memory of huge triangles, and fits in a CPU's cache.
PIECE = 1 << 17

NOTHING = torch.iinfo(torch.int64).max


@torch.no_grad()
def nearest_faces(points: Tensor, faces: Tensor, size_px: int) -> Tensor:
    """Return the nearest face at each pixel centre (B, H, W) int64, -1 for no face; at equal depth the lower id.

    `points` (B, V, 3) float32 or float64, x right and y down in [-1, 1], smaller z is nearer; `faces` (F, 3)
    int64. No dimension may be 0.
    """
    batch, vertex_count = points.shape[:2]
    usable = usable_vertices(points)
    x, y, z = torch.where(usable[..., None], points, 0).unbind(-1)
    # Depths from the image's nearest vertex on: never negative, so that their bits sort like the values.
    z = z - torch.where(usable, z, torch.inf).amin(1, keepdim=True)
    vertices = _Vertices(
        # Pixel centres are at integers.
        x=((x + 1) * (size_px / 2) - 0.5).reshape(-1),
        y=((y + 1) * (size_px / 2) - 0.5).reshape(-1),
        z=z.reshape(-1),
    )
    image = torch.arange(batch, device=points.device)[:, None]
    corners = [(faces[:, k] + image * vertex_count).reshape(-1) for k in range(3)]
    drawn = _drawn(vertices, usable.reshape(-1), corners)
    for i, j in ((0, 1), (1, 2), (0, 1)):
        corners[i], corners[j] = _upper_first(corners[i], corners[j], vertices.y)
    parts = _parts(vertices, corners, drawn, size_px)
    face = torch.arange(len(faces), device=points.device).expand(batch, -1).reshape(-1).repeat(2)
    first_pixel = (image * size_px**2).expand(-1, len(faces)).reshape(-1).repeat(2)

    keys = torch.full((batch * size_px**2,), NOTHING, device=points.device)
    for part, nth_row in _expand(parts.row_count):
        row = parts.top_row.index_select(0, part) + nth_row
        spans = _spans(vertices, parts, part, row, size_px)
        first = first_pixel.index_select(0, part) + row.long() * size_px + spans.first_column
        face_of_span = face.index_select(0, part)
        for span, nth_pixel in _expand(spans.length):
            depth = spans.depth.index_select(0, span) + spans.slope.index_select(0, span) * nth_pixel
            depth_bits = depth.float().clamp(min=0).view(torch.int32).long()
            key = (depth_bits << 32) | face_of_span.index_select(0, span)
            keys.scatter_reduce_(0, first.index_select(0, span) + nth_pixel, key, "amin")
    # The lower half of a key is the face id, that of NOTHING is -1.
    return keys.int().long().reshape(batch, size_px, size_px)


class _Vertices(NamedTuple):
    """All B * V vertices, in pixels, with depth relative to the nearest one."""

    x: Tensor
    y: Tensor
    z: Tensor


class _Parts(NamedTuple):
    """Triangles cut in two at their middle corner: first all upper parts, then all lower ones.

    Each has a long and a short side, vertex indices from their upper to their lower end.
    """

    long_start: Tensor
    long_end: Tensor
    short_start: Tensor
    short_end: Tensor
    top_row: Tensor  # floating point
    row_count: Tensor  # int64


class _Spans(NamedTuple):
    """Pixels that one part covers in one row: `length` pixels from `first_column` on."""

    first_column: Tensor  # int64
    length: Tensor  # int64
    depth: Tensor  # at the first pixel
    slope: Tensor  # of the depth, per pixel


def _drawn(vertices: _Vertices, usable: Tensor, corners: list[Tensor]) -> Tensor:
    """Return the triangles whose corners are all usable and enclose an area."""
    x0, x1, x2 = (vertices.x.index_select(0, corner) for corner in corners)
    y0, y1, y2 = (vertices.y.index_select(0, corner) for corner in corners)
    drawn = (x1 - x0) * (y2 - y0) != (x2 - x0) * (y1 - y0)
    for corner in corners:
        drawn &= usable.index_select(0, corner)
    return drawn


def _upper_first(a: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vertex indices, swapped where b is higher in the image than a."""
    swap = y.index_select(0, b) < y.index_select(0, a)
    return torch.where(swap, b, a), torch.where(swap, a, b)


def _parts(vertices: _Vertices, corners: list[Tensor], drawn: Tensor, size_px: int) -> _Parts:
    """Cut triangles into parts. `corners` run downwards; a row through the middle corner is in the lower part."""
    upper, middle, lower = corners
    top = vertices.y.index_select(0, upper).ceil().clamp(0, size_px)
    cut = vertices.y.index_select(0, middle).ceil().clamp(0, size_px)
    end = vertices.y.index_select(0, lower).floor().clamp(-1, size_px - 1) + 1
    return _Parts(
        long_start=upper.repeat(2),
        long_end=lower.repeat(2),
        short_start=torch.cat([upper, middle]),
        short_end=torch.cat([middle, lower]),
        top_row=torch.cat([top, cut]),
        row_count=(torch.cat([cut - top, end - cut]).clamp(min=0) * drawn.repeat(2)).long(),
    )


def _spans(vertices: _Vertices, parts: _Parts, part: Tensor, row: Tensor, size_px: int) -> _Spans:
    """Intersect each of `part` with its `row`, both (N,)."""
    x_long, z_long = _cut(vertices, parts.long_start, parts.long_end, part, row)
    x_short, z_short = _cut(vertices, parts.short_start, parts.short_end, part, row)
    first = torch.minimum(x_long, x_short).ceil().clamp(0, size_px)
    last = torch.maximum(x_long, x_short).floor().clamp(-1, size_px - 1)
    # Change of z over change of x; a span narrower than a millionth of a pixel has constant depth.
    width = x_short - x_long
    slope = (z_short - z_long) * width / (width * width + 1e-12)
    return _Spans(
        first_column=first.long(),
        length=(last - first + 1).clamp(min=0).long(),
        depth=z_long + (first - x_long) * slope,
        slope=slope,
    )


def _cut(
    vertices: _Vertices, starts: Tensor, ends: Tensor, part: Tensor, row: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x and z where a side crosses a row: x is exact at both ends and on vertical sides.

    These are plain products and sums. `torch.lerp` fuses them or not, depending on the position in the tensor. Then
    two triangles with a common side would differ in the last bit.
    """
    start, end = starts.index_select(0, part), ends.index_select(0, part)
    y0, y1 = vertices.y.index_select(0, start), vertices.y.index_select(0, end)
    x0, x1 = vertices.x.index_select(0, start), vertices.x.index_select(0, end)
    z0, z1 = vertices.z.index_select(0, start), vertices.z.index_select(0, end)
    # A horizontal side (a flat bottom) is crossed at its start; the long side gives its end.
    way = (row - y0) / (y1 - y0).clamp(min=torch.finfo(row.dtype).tiny)
    rest = 1 - way
    x = (x0 * rest + x1 * way).clamp(torch.minimum(x0, x1), torch.maximum(x0, x1))
    return x, z0 * rest + z1 * way


def _expand(counts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Repeat item i counts[i] times: yield (item, repetition), both (sum,) int64, in pieces."""
    ends = counts.cumsum(0)
    total = int(ends[-1])
    piece = PIECE if counts.device.type == "cpu" else PIECE * 64
    cuts = torch.searchsorted(
        ends, torch.arange(piece, max(total, piece), piece, device=ends.device), right=True
    )
    bounds = [0, *cuts.unique().tolist(), len(counts)]
    for low, high in pairwise(bounds):
        piece_ends = ends[low:high]
        start = 0 if low == 0 else int(ends[low - 1])
        length = int(piece_ends[-1]) - start if high > low else 0
        if not length:
            continue
        # Count the items that have ended: several times faster than repeat_interleave on a CPU.
        steps = torch.zeros(length + 1, dtype=torch.int64, device=ends.device)
        item = steps.index_add_(0, piece_ends - start, torch.ones_like(piece_ends)).cumsum(0)[:-1]
        repetition = torch.arange(start, start + length, device=ends.device)
        repetition -= (piece_ends - counts[low:high]).index_select(0, item)
        yield item + low, repetition
