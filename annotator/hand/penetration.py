"""How deep two hands reach into each other: the farthest vertex of one inside the other's surface."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]

#: Points per block of the comparison with all triangles.
_BLOCK = 64

#: Winding number beyond which a point is inside. Around the open wrist it falls from 1 to 0 smoothly.
_INSIDE = 0.5


def penetration_mm(one: Floats, other: Floats, faces: NDArray[np.integer]) -> float:
    """Return the depth at which two meshes of one topology reach into each other; 0 where they do not.

    Args:
        one: vertices (V, 3), millimetres, in the axes of `other`; either may be mirrored.
        other: vertices (V, 3).
        faces: triangles (F, 3). The meshes may be open at the wrist.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return max(_depth_mm(one, other[faces]), _depth_mm(other, one[faces]))


def _depth_mm(points: Floats, triangles: Floats) -> float:
    """Return the largest distance from the surface of points (N, 3) inside triangles (F, 3, 3)."""
    corners = triangles.reshape(-1, 3)
    points = points[((points >= corners.min(0)) & (points <= corners.max(0))).all(1)]
    if not len(points):
        return 0.0
    # No point is farther from the surface than from its nearest corner: those that may be deepest come first.
    most: Floats = cKDTree(corners).query(points)[0]
    order = np.argsort(-most)
    depth = 0.0
    for start in range(0, len(points), _BLOCK):
        rows = order[start : start + _BLOCK]
        rows = rows[most[rows] > depth]
        if not len(rows):
            break
        rows = rows[np.abs(winding_numbers(points[rows], triangles)) > _INSIDE]
        if len(rows):
            near = _may_be_nearest(points[rows], triangles, most[rows])
            depth = max(depth, float(surface_distances(points[rows], triangles[near]).max()))
    return depth


def _may_be_nearest(points: Floats, triangles: Floats, most: Floats) -> NDArray[np.bool_]:
    """Return which triangles (F,) have a part within `most` (N,) of one of the points (N, 3)."""
    middle = triangles.mean(1)
    reach = np.sqrt(np.square(triangles - middle[:, None]).sum(-1).max(1))
    apart = np.sqrt(np.square(points[:, None] - middle[None]).sum(-1))
    # Rounding must not leave out the triangles of the nearest corner.
    is_near: NDArray[np.bool_] = (apart - reach <= most[:, None] + 1e-6).any(0)
    return is_near


def winding_numbers(points: Floats, triangles: Floats) -> Floats:
    """Return how often triangles (F, 3, 3) wind around points (N, 3): the solid angle over 4 pi.

    The formula for one triangle is that of Van Oosterom and Strackee (1983).
    """
    # Centred, so that products of matrices replace vectors per pair of point and triangle.
    centre = triangles.reshape(-1, 3).mean(0)
    p, (a, b, c) = points - centre, (triangles[:, k] - centre for k in range(3))
    square = (p * p).sum(1)[:, None]

    def dot(u: Floats, v: Floats) -> Floats:
        return (u * v).sum(1) - p @ (u + v).T + square

    la, lb, lc = (np.sqrt(np.maximum(dot(v, v), 0)) for v in (a, b, c))
    over = (a * np.cross(b, c)).sum(1) - p @ (np.cross(a, b) + np.cross(b, c) + np.cross(c, a)).T
    under = la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb
    angle: Floats = np.arctan2(over, under).sum(1) / (2 * np.pi)
    return angle


def surface_distances(points: Floats, triangles: Floats) -> Floats:
    """Return the distance (N,) of points (N, 3) from triangles (F, 3, 3)."""
    a, b, c = (triangles[:, k] for k in range(3))
    nearest = np.minimum.reduce([_from_edges(points, p, q) for p, q in ((a, b), (b, c), (c, a))])
    normal = np.cross(b - a, c - a)
    size = np.maximum((normal * normal).sum(1), 1e-30)
    away = points[:, None] - a[None]
    height = (away * normal).sum(-1)
    # Shares of the corners b and c at the foot of each point on each plane.
    of_b = (np.cross(away, (c - a)[None]) * normal).sum(-1) / size
    of_c = (np.cross((b - a)[None], away) * normal).sum(-1) / size
    is_over = (of_b >= 0) & (of_c >= 0) & (of_b + of_c <= 1)
    nearest = np.where(is_over, np.minimum(nearest, height**2 / size), nearest)
    distances: Floats = np.sqrt(nearest.min(1))
    return distances


def _from_edges(points: Floats, start: Floats, end: Floats) -> Floats:
    """Return squared distances (N, F) of points (N, 3) from edges between (F, 3) and (F, 3)."""
    along = end - start
    away = points[:, None] - start[None]
    share = np.clip((away * along).sum(-1) / np.maximum((along * along).sum(-1), 1e-30), 0, 1)
    left = away - share[..., None] * along
    squares: Floats = (left * left).sum(-1)
    return squares
