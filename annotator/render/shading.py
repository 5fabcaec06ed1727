"""Draw lit pictures of meshes, for reports, the docs and synthetic photos."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from annotator.render import interpolate, rasterize

#: From the mesh towards the lamp, camera axes: from the upper left, in front.
UPPER_LEFT_FRONT = (-0.5, -0.7, -0.8)

# Shares of the three light sources on a surface that faces all of them; they sum to 1.
AMBIENT, HEADLIGHT, LAMP = 0.25, 0.2, 0.55


def vertex_normals(points: Tensor, faces: Tensor) -> Tensor:
    """Return unit normals (B, V, 3), area-weighted means over the faces around each vertex; zero without faces.

    `points` (B, V, 3) must be uniformly scaled: x, y and z in the same unit. Normals point to the side from
    which the corners of a face (F, 3) run counter-clockwise: outwards, for a hand model's faces.
    """
    corners = points[:, faces]  # (B, F, 3, 3)
    doubled_areas = torch.linalg.cross(
        corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
    )
    # A face that can't be drawn does not affect the normals of its neighbours.
    doubled_areas = doubled_areas.nan_to_num(0, 0, 0)
    summed = torch.zeros_like(points)
    for k in range(3):
        summed = summed.index_add(1, faces[:, k], doubled_areas)
    return F.normalize(summed, dim=-1, eps=torch.finfo(points.dtype).tiny)


def draw(
    points: Tensor,
    faces: Tensor,
    colours: Tensor,
    size_px: int,
    supersample: int = 2,
    light: Sequence[float] | Tensor = UPPER_LEFT_FRONT,
    backend: str = "auto",
) -> Tensor:
    """Draw B meshes in their vertex colours, lit: (B, H, W, 4) RGBA in 0..1, zero outside the mesh.

    `points` (B, V, 3) are as in `rasterize`, and uniformly scaled: x, y and z in the same unit, otherwise the light
    is wrong. `faces` (F, 3) int64; both sides are lit alike, so mirrored faces and open wrists look right.
    `colours` (B, V, 3) in 0..1. Edges are smoothed by drawing at `supersample` times the size; alpha is straight
    (not multiplied into the colour). `light` points from the mesh towards the lamp, (3,) or one per mesh (B, 3), of
    any length.
    """
    fragments = rasterize(points, faces, size_px * supersample, backend)
    normals = vertex_normals(points, faces)
    painted = interpolate(fragments, torch.cat([colours.to(normals), normals], -1), faces)
    normal = F.normalize(painted[..., 3:], dim=-1)
    # Use the face, not its smooth normal, which may point away from the camera near a silhouette.
    normal = normal * _facing(points, faces, fragments.face_ids)[..., None]
    to_lamp = F.normalize(torch.as_tensor(light, dtype=normal.dtype, device=normal.device), dim=-1)
    # Half of the lamp's light wraps around: skin is soft, and shadowed sides keep their shape.
    lamp = ((normal * to_lamp.reshape(-1, 1, 1, 3)).sum(-1, keepdim=True) * 0.5 + 0.5).clamp(min=0) ** 1.5
    headlight = (-normal[..., 2:]).clamp(min=0)
    covered = (fragments.face_ids >= 0)[..., None].to(normal.dtype)
    rgb = painted[..., :3] * (AMBIENT + HEADLIGHT * headlight + LAMP * lamp)
    premultiplied = torch.cat([rgb * covered, covered], -1)
    smooth = F.avg_pool2d(premultiplied.permute(0, 3, 1, 2), supersample).permute(0, 2, 3, 1)
    alpha = smooth[..., 3:]
    return torch.cat([smooth[..., :3] / torch.where(alpha > 0, alpha, 1), alpha], -1).clamp(0, 1)


def _facing(points: Tensor, faces: Tensor, face_ids: Tensor) -> Tensor:
    """Return 1 where the visible face's normal points towards the camera, -1 where away: (B, H, W)."""
    corners = points[:, faces, :2].detach()
    first, second = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
    normal_z = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    sign = torch.where(normal_z > 0, -1.0, 1.0).to(points.dtype)
    background_last = face_ids.flatten(1) % (len(faces) + 1)
    return F.pad(sign, (0, 1)).gather(1, background_last).reshape(face_ids.shape)
