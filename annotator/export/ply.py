"""Binary PLY: one mesh with vertex colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])
_FACE = np.dtype([("count", "u1"), ("corners", "<i4", 3)])

_HEAD = """\
ply
format binary_little_endian 1.0
comment {content}, metres, x right, y up, z towards the viewer, {origin} at the origin
element vertex {vertices}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
element face {faces}
property list uchar int vertex_indices
end_header
"""


def ply_bytes(
    vertices: NDArray[np.floating],
    faces: NDArray[np.integer],
    rgb: NDArray[np.uint8],
    content: str = "a hand",
    origin: str = "the wrist",
) -> bytes:
    """Return a file with one mesh: vertices (V, 3) metres, faces (F, 3), rgb (V, 3) sRGB.

    `content` and `origin` describe it in a comment.
    """
    of_vertices = np.empty(len(vertices), _VERTEX)
    of_vertices["xyz"], of_vertices["rgb"] = vertices, rgb
    of_faces = np.empty(len(faces), _FACE)
    of_faces["count"], of_faces["corners"] = 3, faces
    head = _HEAD.format(vertices=len(vertices), faces=len(faces), content=content, origin=origin).encode()
    return head + of_vertices.tobytes() + of_faces.tobytes()
