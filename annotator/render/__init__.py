"""Rasterize and interpolate: one interface, two backends with equal results.

Triangle meshes are rendered under a weak-perspective camera. Points are already projected, x right and y down in
[-1, 1] over a square image, with a depth in any unit, smaller is nearer. Everything is linear in screen space: there
is no perspective division, and barycentric weights in the image equal those on the triangle.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from annotator.errors import UserError
from annotator.render import torch_backend
from annotator.render.fragments import (
    Covered,
    Fragments,
    barycentrics,
    cover,
    covered,
    interpolate,
    reverse_interpolate,
    visible_vertices,
)

__all__ = [
    "Covered",
    "Fragments",
    "barycentrics",
    "cover",
    "covered",
    "interpolate",
    "nearest_faces",
    "rasterize",
    "reverse_interpolate",
    "visible_vertices",
]


def rasterize(points: Tensor, faces: Tensor, size_px: int, backend: str = "auto") -> Fragments:
    """Return the nearest face at each pixel of B square images, and the position in it (see `Fragments`).

    Gradients reach the points through the barycentrics, not the silhouettes. Half precision is raised to float32.

    Args:
        points: (B, V, 3): x right, y down, both in [-1, 1] over the image (pixel i covers 2i/size_px - 1 to
            2(i+1)/size_px - 1 and is sampled at its centre); z in any unit, smaller is nearer.
        faces: (F, 3) int64; both sides of a face are visible. A face with a NaN or infinite corner, or without area,
            draws nothing.
        size_px: side of the images.
        backend: "auto" (nvdiffrast on CUDA if it is installed, otherwise torch), "torch" or "nvdiffrast".

    Raises:
        UserError: any other backend, or nvdiffrast without CUDA or not installed.
    """
    points = _full_precision(points)
    face_ids = nearest_faces(points, faces, size_px, backend)
    return Fragments(face_ids, barycentrics(points, faces, face_ids))


def nearest_faces(points: Tensor, faces: Tensor, size_px: int, backend: str = "auto") -> Tensor:
    """Return only the `face_ids` (B, H, W) of `rasterize`, in about half the time: enough for visibility."""
    draw_ids = _backend(backend, points.device.type)
    points = _full_precision(points.detach())
    if points.numel() and faces.numel() and size_px:
        return draw_ids(points, faces, size_px)
    return torch.full((len(points), size_px, size_px), -1, device=points.device)


def _full_precision(points: Tensor) -> Tensor:
    return points if points.dtype in (torch.float32, torch.float64) else points.float()


def _backend(name: str, device: str) -> Callable[[Tensor, Tensor, int], Tensor]:
    if name not in ("auto", "torch", "nvdiffrast"):
        raise UserError(f"unknown rendering backend '{name}': use auto, torch or nvdiffrast")
    installed = find_spec("nvdiffrast") is not None
    if name == "nvdiffrast" and device != "cuda":
        raise UserError(
            f"rendering backend 'nvdiffrast' needs a CUDA GPU but the mesh is on '{device}': use torch"
        )
    if name == "nvdiffrast" and not installed:
        raise UserError(
            "rendering backend 'nvdiffrast' is not installed: install the extra 'gpu' or use torch"
        )
    # Imported late, because nvdiffrast is optional.
    if name == "nvdiffrast" or (name == "auto" and device == "cuda" and installed):
        from annotator.render import nvdiffrast_backend

        return nvdiffrast_backend.nearest_faces
    return torch_backend.nearest_faces
