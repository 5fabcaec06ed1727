"""glTF 2.0, binary: a mesh with normals and vertex colours."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_COMPONENTS = {"<f4": 5126, "<u4": 5125, "|u1": 5121}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}
VERTICES, ELEMENTS = 34962, 34963  # purposes of a buffer view


class GlbBuffer:
    """The arrays of a file, each an accessor with a view of its own."""

    def __init__(self) -> None:
        self._views: list[dict[str, Any]] = []
        self._accessors: list[dict[str, Any]] = []
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, values: NDArray[Any], kind: str, target: int | None = None, bounds: bool = False) -> int:
        """Append an array and return the number of its accessor.

        Args:
            values: float32, uint32 or uint8; (n,) or (n, width of `kind`).
            kind: SCALAR, VEC3, VEC4 or MAT4.
            target: its purpose, for vertices and triangles.
            bounds: store minimum and maximum, as glTF requires of positions and times.
        """
        rows = np.ascontiguousarray(values).reshape(-1, _WIDTHS[kind])
        view = {"buffer": 0, "byteOffset": self._length, "byteLength": rows.nbytes}
        self._views.append(view if target is None else view | {"target": target})
        accessor = {
            "bufferView": len(self._accessors),
            "componentType": _COMPONENTS[rows.dtype.str],
            "count": len(rows),
            "type": kind,
        }
        if bounds:
            accessor |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        self._accessors.append(accessor)
        data = rows.tobytes()
        self._parts.append(data + b"\0" * (-len(data) % 4))
        self._length += len(self._parts[-1])
        return len(self._accessors) - 1

    def file(self, document: dict[str, Any]) -> bytes:
        """Return the file of a glTF document that refers to these accessors."""
        whole = {"asset": {"version": "2.0", "generator": "amvur"}, "scene": 0} | document
        whole |= {
            "accessors": self._accessors,
            "bufferViews": self._views,
            "buffers": [{"byteLength": self._length}],
        }
        return _packed(whole, b"".join(self._parts))


def mesh_of(
    buffer: GlbBuffer,
    vertices: NDArray[np.floating],
    faces: NDArray[np.integer],
    rgb: NDArray[np.uint8],
    extras: dict[str, Any],
) -> dict[str, Any]:
    """Append a mesh's arrays and return its entry in `meshes`.

    Args:
        buffer: of the file.
        vertices: (V, 3) metres, y up.
        faces: (F, 3) counter-clockwise seen from outside.
        rgb: (V, 3) sRGB; stored as linear colours, as glTF requires.
        extras: further facts about the mesh.
    """
    positions = np.asarray(vertices, "<f4")
    attributes = {
        "POSITION": buffer.add(positions, "VEC3", VERTICES, bounds=True),
        "NORMAL": buffer.add(vertex_normals(vertices, faces).astype("<f4"), "VEC3", VERTICES),
        "COLOR_0": buffer.add(linear_rgb(rgb).astype("<f4"), "VEC3", VERTICES),
    }
    indices = buffer.add(np.asarray(faces, "<u4"), "SCALAR", ELEMENTS)
    # No material: with one, trimesh treats the mesh as textured and drops its vertex colours.
    return {
        "name": "hand",
        "primitives": [{"attributes": attributes, "indices": indices}],
        "extras": extras,
    }


#: Vertices, faces, colours and extras of a mesh, as `mesh_of` takes them.
Part = tuple[NDArray[np.floating], NDArray[np.integer], NDArray[np.uint8], dict[str, Any]]


def glb_bytes(parts: Sequence[Part]) -> bytes:
    """Return a file with a scene of meshes, one node each."""
    buffer = GlbBuffer()
    meshes = [mesh_of(buffer, *part) for part in parts]
    nodes = [{"mesh": k, "name": f"hand{k}" if k else "hand"} for k in range(len(meshes))]
    return buffer.file({"scenes": [{"nodes": list(range(len(nodes)))}], "nodes": nodes, "meshes": meshes})


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
