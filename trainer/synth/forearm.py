"""A forearm for a hand that ends at the wrist: a tapered tube from its open edge, in a sleeve, with a watch."""

from __future__ import annotations

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Distances of rings, mm: of the bare tube behind the wrist's edge, and of a sleeve behind its start. For a watch or
#: bracelet: behind its start, as shares of its width.
RINGS_MM = (6.0, 13.0, 21.0, 30.0, 42.0, 60.0, 85.0, 120.0, 170.0, 240.0, 480.0)
SLEEVE_MM = (0.0, 0.0, 3.0, 20.0, 60.0, 130.0, 450.0)
BAND = (0.0, 0.0, 1.0, 1.0)
_CLOTH_MM = (0.0, 3.5, 5.0, 5.0, 6.0, 8.0, 10.0)
_BAND_MM = (0.0, 2.5, 2.5, 0.0)

# Length over which the wrist bends.
_BEND_MM = 40.0
# Radii over the wrist's: 1 up to 60 mm, then growing to these at these distances.
_TAPER = ((0.0, 60.0, 200.0, 320.0), (1.0, 1.02, 1.38, 1.45))


def open_edge(faces: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the vertices (E,) around the single hole of a mesh (F, 3), in the direction of its faces."""
    edges = {(int(face[k]), int(face[k - 2])) for face in faces for k in range(3)}
    following = {a: b for a, b in edges if (b, a) not in edges}
    loop = [min(following)]
    while len(loop) < len(following):
        loop.append(following[loop[-1]])
    return np.array(loop)


def tube_faces(rings: NDArray[np.integer]) -> NDArray[np.int64]:
    """Connect rings (R, E) of vertices by faces; the first ring runs against the hand's own faces."""
    a, b = rings[:-1], np.roll(rings, -1, 1)[:-1]
    c, d = rings[1:], np.roll(rings, -1, 1)[1:]
    return np.concatenate([np.stack([b, a, c], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])


def forearms(
    edge_mm: Tensor,
    bend: Tensor,
    sleeve_start_mm: Tensor,
    band_start_mm: Tensor,
    band_width_mm: Tensor,
    reach_mm: Tensor,
) -> Tensor:
    """Return forearm vertices (B, A, 3) in the hand's rest frame, mm: rings of the bare tube, the sleeve and the band.

    Args:
        edge_mm: the wrist's open edge (B, E, 3), rest frame.
        bend: axis-angle (B, 3) of the wrist: the forearm follows the +x axis rotated by it.
        sleeve_start_mm: (B,) from the wrist's edge; infinite for a bare arm.
        band_start_mm: (B,) likewise for a watch or bracelet; infinite without one.
        band_width_mm: (B,).
        reach_mm: (B,) maximum length of the arm, e.g. so that it ends in front of the camera.
    """
    device, count = edge_mm.device, len(edge_mm)
    centre = edge_mm.mean(1)
    offsets = edge_mm - centre[:, None]
    around = torch.atan2(offsets[..., 2], offsets[..., 1])
    radii = offsets[..., 1:].abs().amax(1)
    oval = torch.stack([around.cos() * radii[:, :1], around.sin() * radii[:, 1:]], -1)
    oval = torch.nn.functional.pad(oval, (1, 0))

    bare = torch.tensor(RINGS_MM, device=device).expand(count, -1)
    covered = sleeve_start_mm.nan_to_num(posinf=0.0)[:, None] + torch.tensor(SLEEVE_MM, device=device)
    band = band_start_mm.nan_to_num(posinf=0.0)[:, None] + band_width_mm[:, None] * torch.tensor(
        BAND, device=device
    )
    along = torch.minimum(torch.cat([bare, covered, band], 1), reach_mm[:, None])
    cloth = torch.tensor((0.0,) * len(RINGS_MM) + _CLOTH_MM + _BAND_MM, device=device)
    taper = _piecewise(along, *_TAPER)
    rounded = (along / 30).clamp(max=1)[..., None, None]
    shape = offsets[:, None] * (1 - rounded) + oval[:, None] * rounded
    shape = shape * (taper + cloth / radii.mean(1, keepdim=True))[..., None, None]

    # The centreline is an arc over the bend, then straight: its mean direction up to s has at most half the rotation.
    share = (along / _BEND_MM).clamp(max=1)
    rotations = roma.rotvec_to_rotmat(share[..., None] * bend[:, None])
    half = roma.rotvec_to_rotmat(share[..., None] * bend[:, None] / 2)
    arc = half[..., 0] * along.clamp(max=_BEND_MM)[..., None]
    straight = roma.rotvec_to_rotmat(bend)[:, None, :, 0] * (along - _BEND_MM).clamp(min=0)[..., None]
    rings = torch.einsum("brij,brej->brei", rotations, shape) + (centre[:, None] + arc + straight)[:, :, None]
    # Absent parts have no area, so they are not drawn.
    first = len(RINGS_MM)
    for start_mm, number in ((sleeve_start_mm, len(SLEEVE_MM)), (band_start_mm, len(BAND))):
        rows = rings[:, first : first + number]
        rings[:, first : first + number] = torch.where(
            start_mm.isinf()[:, None, None, None], centre[:, None, None], rows
        )
        first += number
    return rings.flatten(1, 2)


def _piecewise(x: Tensor, knots: tuple[float, ...], values: tuple[float, ...]) -> Tensor:
    """Interpolate linearly between knots, constant beyond."""
    result = torch.full_like(x, values[0])
    for k in range(len(knots) - 1):
        rise = (values[k + 1] - values[k]) / (knots[k + 1] - knots[k])
        result = result + (x.clamp(knots[k], knots[k + 1]) - knots[k]) * rise
    return result
