"""Rotations as vectors and matrices, for the network and all that starts with it.

The rest uses roma, whose import brings torch's compiler along: a second of a core in every process.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotvec_to_rotmat(rotvec: Tensor) -> Tensor:
    """Convert rotation vectors (..., 3), radians, to matrices (..., 3, 3) by Rodrigues' formula."""
    angle = rotvec.norm(dim=-1)[..., None, None]
    cross = cross_matrix(rotvec)
    outer = rotvec[..., :, None] * rotvec[..., None, :]
    identity = torch.eye(3, dtype=rotvec.dtype, device=rotvec.device)
    # torch's sinc(x) is sin(pi x) / (pi x), so small angles need no case of their own.
    about = (angle / math.pi).sinc() * cross + (angle / math.tau).sinc().square() / 2 * outer
    return angle.cos() * identity + about


def cross_matrix(vectors: Tensor) -> Tensor:
    """Return matrices (..., 3, 3) of vectors (..., 3): `cross_matrix(a) @ b` is the cross product of a and b."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def rotmat_to_rotvec(rotation: Tensor) -> Tensor:
    """Convert matrices (..., 3, 3) to rotation vectors (..., 3) of at most pi radians."""
    quaternion = _quaternions(rotation)
    quaternion = torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
    axis, cosine = quaternion[..., :3], quaternion[..., 3]
    half = torch.atan2(axis.norm(dim=-1), cosine)
    return 2 / (half / math.pi).sinc()[..., None] * axis


def _quaternions(rotation: Tensor) -> Tensor:
    """Return unit quaternions (..., 4), x y z w, of matrices (..., 3, 3) (Markley, 2008, equation 8)."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotation.unbind(-2))
    rows = [
        *(1 + a - e - i, b + d, c + g, h - f),
        *(b + d, 1 + e - a - i, f + h, c - g),
        *(c + g, f + h, 1 + i - a - e, d - b),
        *(h - f, c - g, d - b, 1 + a + e + i),
    ]
    # Four times each component times the quaternion; the row of the largest component is the most accurate.
    products = torch.stack(rows, -1).unflatten(-1, (4, 4))
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    chosen = products.gather(-2, largest.expand(*largest.shape[:-1], 4))[..., 0, :]
    return chosen / chosen.norm(dim=-1, keepdim=True)


def gram_schmidt(columns: Tensor) -> Tensor:
    """Return the rotations (..., 3, 3) whose first two axes span the columns (..., 3, 2), the first along its own."""
    first, second = columns.unbind(-1)
    x = first / first.norm(dim=-1, keepdim=True)
    y = second - (x * second).sum(-1, keepdim=True) * x
    y = y / y.norm(dim=-1, keepdim=True)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)
