"""glTF 2.0, binary: one mesh with normals and vertex colours."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLOAT, _UINT32 = 5126, 5125
_ARRAY, _ELEMENTS = 34962, 34963  # purposes of a buffer view


def glb_bytes(
    vertices: NDArray[np.floating], faces: NDArray[np.integer], rgb: NDArray[np.uint8], extras: dict[str, Any]
) -> bytes:
    """Return a file with one mesh.

    Args:
        vertices: (V, 3) metres, y up.
        faces: (F, 3) counter-clockwise seen from outside.
        rgb: (V, 3) sRGB; stored as linear colours, as glTF requires.
        extras: further facts about the mesh.
    """
    parts: list[tuple[NDArray[Any], str]] = [
        (np.asarray(vertices, "<f4"), "VEC3"),
        (vertex_normals(vertices, faces).astype("<f4"), "VEC3"),
        (linear_rgb(rgb).astype("<f4"), "VEC3"),
        (np.ascontiguousarray(faces, "<u4").reshape(-1), "SCALAR"),
    ]
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    offset = 0
    for values, kind in parts:
        is_index = kind == "SCALAR"
        target = _ELEMENTS if is_index else _ARRAY
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": values.nbytes, "target": target})
        component = _UINT32 if is_index else _FLOAT
        accessors.append(
            {"bufferView": len(accessors), "componentType": component, "count": len(values), "type": kind}
        )
        offset += values.nbytes
    # glTF requires the bounds of positions.
    accessors[0] |= {"min": parts[0][0].min(0).tolist(), "max": parts[0][0].max(0).tolist()}
    attributes = {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}
    # No material: with one, trimesh treats the mesh as textured and drops its vertex colours.
    document = {
        "asset": {"version": "2.0", "generator": "amvur"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "hand"}],
        "meshes": [
            {
                "name": "hand",
                "primitives": [{"attributes": attributes, "indices": 3}],
                "extras": extras,
            }
        ],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }
    return _packed(document, b"".join(values.tobytes() for values, _ in parts))


def _packed(document: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(document, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    data += b"\0" * (-len(data) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def linear_rgb(rgb: NDArray[np.uint8]) -> NDArray[np.floating]:
    """Convert sRGB 0..255 to linear 0..1."""
    value = np.asarray(rgb, np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def vertex_normals(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.floating]:
    """Return unit normals (V, 3): means over adjacent triangles, weighted by area."""
    a, b, c = (np.asarray(vertices, np.float64)[faces[:, k]] for k in range(3))
    of_faces = np.cross(b - a, c - a)
    normals = np.zeros((len(vertices), 3))
    for k in range(3):
        np.add.at(normals, faces[:, k], of_faces)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    # Vertices of no triangle or of flat ones have no normal, but glTF requires unit length.
    return np.where(length > 0, normals / np.maximum(length, 1e-300), [0.0, 0.0, 1.0])
