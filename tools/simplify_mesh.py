"""Simplify a mesh onto a subset of its own vertices, so that per-vertex data carry over by indexing.

Quadric error edge collapse (Garland and Heckbert, 1997), restricted to half-edge collapses: one end of an
edge moves onto the other and vanishes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# Limits of a collapse: the rotation of a triangle (cosine), and its thinness (area over longest edge squared; an
# equilateral triangle has 0.43).
_MIN_NORMAL_COSINE = 0.3
_MIN_SHAPE = 0.06


def _normals(corners: Array) -> Array:
    """Return twice the area times the unit normal of triangles (..., 3, 3)."""
    return np.cross(corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :])


def _quadrics(vertices: Array, faces: NDArray[np.integer]) -> Array:
    """Return the sum of squared distances to the planes of the faces around each vertex, area-weighted: (V, 4, 4)."""
    normal = _normals(vertices[faces])
    area = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = normal / np.maximum(area, 1e-18)
    plane = np.concatenate([normal, -(normal * vertices[faces[:, 0]]).sum(1, keepdims=True)], axis=1)
    quadric = area[:, :, None] * plane[:, :, None] * plane[:, None, :]
    total = np.zeros((len(vertices), 4, 4))
    for corner in range(3):
        np.add.at(total, faces[:, corner], quadric)
    return total


def collapse_edges(
    vertices: Array,
    faces: NDArray[np.integer],
    features: Array,
    count: int,
    keep: Iterable[int] = (),
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Collapse a mesh with open borders to `count` vertices.

    `vertices (V, 3)`; `faces (F, 3)`; `features (V, C)`, in the vertices' unit: their squared distance along an edge
    adds to its cost; `keep`: vertices that must stay. Return the indices of the vertices kept (count,), sorted, and
    the faces over them (F', 3), windings unchanged.
    """
    triangles: dict[int, tuple[int, int, int]] = {
        i: (int(a), int(b), int(c)) for i, (a, b, c) in enumerate(faces)
    }
    around: list[set[int]] = [set() for _ in vertices]
    for i, triangle in triangles.items():
        for vertex in triangle:
            around[vertex].add(i)
    quadrics = _quadrics(vertices, faces)
    homogeneous = np.concatenate([vertices, np.ones((len(vertices), 1))], axis=1)
    area = np.linalg.norm(_normals(vertices[faces]), axis=1).mean()
    gone: set[int] = set()
    locked, version = set(keep), [0] * len(vertices)

    def neighbours(vertex: int) -> set[int]:
        return {other for i in around[vertex] for other in triangles[i]} - {vertex}

    def on_border(vertex: int) -> bool:
        return len(neighbours(vertex)) != len(around[vertex])

    def cost(gone_vertex: int, kept_vertex: int) -> float:
        point = homogeneous[kept_vertex]
        plane = point @ (quadrics[gone_vertex] + quadrics[kept_vertex]) @ point
        apart = ((vertices[gone_vertex] - vertices[kept_vertex]) ** 2).sum()
        unlike = ((features[gone_vertex] - features[kept_vertex]) ** 2).sum()
        return float(plane + area * (4e-3 * apart + unlike))

    def allowed(gone_vertex: int, kept_vertex: int) -> bool:
        shared = around[gone_vertex] & around[kept_vertex]
        if on_border(gone_vertex) and (len(shared) != 1 or not on_border(kept_vertex)):
            return False
        if len(neighbours(gone_vertex) & neighbours(kept_vertex)) != len(shared):
            return False
        moved = [triangles[i] for i in around[gone_vertex] - shared]
        if not moved:
            return False
        before = vertices[np.array(moved)]
        after = vertices[np.array([[kept_vertex if v == gone_vertex else v for v in t] for t in moved])]
        old, new = _normals(before), _normals(after)
        size = np.linalg.norm(new, axis=1)
        longest = ((after - np.roll(after, 1, axis=1)) ** 2).sum(-1).max(1)
        steady = (old * new).sum(1) >= _MIN_NORMAL_COSINE * np.linalg.norm(old, axis=1) * size
        return bool((steady & (size >= 2 * _MIN_SHAPE * longest)).all())

    def push(vertex: int) -> None:
        for other in sorted(neighbours(vertex)):
            for a, b in ((vertex, other), (other, vertex)):
                if a not in locked:
                    heapq.heappush(queue, (cost(a, b), a, b, version[a], version[b]))

    queue: list[tuple[float, int, int, int, int]] = []
    for vertex in range(len(vertices)):
        push(vertex)
    while len(vertices) - len(gone) > count:
        if not queue:
            raise ValueError(f"no edge can collapse any more, at {len(vertices) - len(gone)} vertices")
        _, a, b, version_a, version_b = heapq.heappop(queue)
        if version[a] != version_a or version[b] != version_b or not allowed(a, b):
            continue
        for i in list(around[a]):
            triangle = triangles[i]
            for vertex in triangle:
                around[vertex].discard(i)
            if b in triangle:
                del triangles[i]
                continue
            triangles[i] = tuple(b if v == a else v for v in triangle)  # type: ignore[assignment]
            for vertex in triangles[i]:
                around[vertex].add(i)
        quadrics[b] += quadrics[a]
        gone.add(a)
        version[a] += 1
        for vertex in {b} | neighbours(b):
            version[vertex] += 1
        for vertex in sorted({b} | neighbours(b)):
            push(vertex)

    kept = np.array([v for v in range(len(vertices)) if v not in gone], dtype=np.int64)
    renumber = np.full(len(vertices), -1)
    renumber[kept] = np.arange(len(kept))
    return kept, renumber[np.array([triangles[i] for i in sorted(triangles)])].astype(np.int32)
