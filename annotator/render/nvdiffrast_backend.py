"""Find nearest faces on CUDA with nvdiffrast (Laine et al., 2020); `fragments.py` does the rest.

Conventions of nvdiffrast: clip space has y up and image row 0 at the bottom. Our y points down, so it goes in
unchanged and row 0 comes out at the top. Everything beyond depth -1 to 1 is cut off. Triangles are int32; their ids
are floating point and start at 1, with 0 for no triangle. Corners are snapped to a sixteenth of a pixel, so pixels
whose centre is that close to an edge may differ from the torch backend.
"""

from __future__ import annotations

from functools import cache

import nvdiffrast.torch as dr
import torch
from torch import Tensor

from annotator.render.fragments import usable_vertices


@cache
def _context(device: torch.device) -> dr.RasterizeCudaContext:
    """Return the device's context, which holds its work buffers. It is not thread-safe."""
    return dr.RasterizeCudaContext(device=device)


@torch.no_grad()
def nearest_faces(points: Tensor, faces: Tensor, size_px: int) -> Tensor:
    """Return the nearest face at each pixel centre (B, H, W), -1 for no face; at equal depth any of them.

    Tensors are as for the torch backend, on a CUDA device.
    """
    batch, vertex_count = points.shape[:2]
    usable = usable_vertices(points)
    # Range mode: each image has its own triangles, so that those with an unusable corner can be excluded.
    image, face = usable[:, faces].all(-1).nonzero(as_tuple=True)
    if not len(face):
        return torch.full((batch, size_px, size_px), -1, device=points.device)
    triangles = (faces[face] + image[:, None] * vertex_count).int()
    counts = torch.bincount(image, minlength=batch)
    ranges = torch.stack([counts.cumsum(0) - counts, counts], 1).int().cpu()
    drawn, _ = dr.rasterize(
        _context(points.device),
        clip_space(points, usable).reshape(-1, 4),
        triangles.contiguous(),
        (size_px, size_px),
        ranges=ranges.contiguous(),
        grad_db=False,
    )
    # The last channel counts the triangles of all images, from 1.
    nth = drawn[..., 3].long()
    return torch.where(nth > 0, face[(nth - 1).clamp(min=0)], -1)


def clip_space(points: Tensor, usable: Tensor) -> Tensor:
    """Return clip coordinates (B, V, 4) float32: x and y unchanged, each image's depths from -0.9 to 0.9, w 1."""
    z = points[..., 2]
    nearest = torch.where(usable, z, torch.inf).amin(1, keepdim=True)
    farthest = torch.where(usable, z, -torch.inf).amax(1, keepdim=True)
    depth = (z - nearest) / (farthest - nearest).clamp(min=torch.finfo(z.dtype).tiny) * 1.8 - 0.9
    clip = torch.stack([points[..., 0], points[..., 1], depth, torch.ones_like(z)], -1)
    return torch.where(usable[..., None], clip, 0).float().contiguous()
