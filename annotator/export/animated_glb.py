"""glTF 2.0, binary: a hand's mesh on its skeleton, and the motion of a track as an animation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.export.glb import VERTICES, GlbBuffer, mesh_of
from annotator.export.skeleton import NAMES, Skeleton
from annotator.hand.model import HandModel

#: Bones per vertex that every viewer applies.
_BONES = 4


def animated_glb_bytes(
    skeleton: Skeleton,
    model: HandModel,
    is_right: bool,
    rgb: NDArray[np.uint8],
    extras: dict[str, Any],
) -> bytes:
    """Return a file with one skinned mesh and one animation.

    Args:
        skeleton: the track.
        model: its hand model.
        is_right: its side; a left hand's triangles are reversed, so that they face outwards.
        rgb: (V, 3) sRGB.
        extras: further facts about the track.
    """
    buffer = GlbBuffer()
    faces = model.faces if is_right else model.faces[:, ::-1]
    mesh = mesh_of(buffer, skeleton.rest_vertices_m, faces, rgb, extras)
    mesh["primitives"][0]["attributes"] |= _skinning(buffer, model)
    quaternions = skeleton.quaternions().astype("<f4")
    wrist = skeleton.wrist_m.astype("<f4")
    # The first node is the mesh; joints and tips follow.
    nodes: list[dict[str, Any]] = [{"name": "hand", "mesh": 0, "skin": 0}]
    for joint, offset in enumerate(skeleton.offsets_m):
        offset_m = wrist[0] if joint == 0 else offset
        node = {"name": NAMES[joint], "translation": [float(value) for value in offset_m]}
        if joint < 16:
            node["rotation"] = [float(value) for value in quaternions[0, joint]]
        children = [1 + int(child) for child in np.flatnonzero(skeleton.parents == joint)]
        nodes.append(node | ({"children": children} if children else {}))
    return buffer.file(
        {
            "scenes": [{"nodes": [0, 1]}],
            "nodes": nodes,
            "meshes": [mesh],
            "skins": [
                {
                    "joints": list(range(1, 17)),
                    "skeleton": 1,
                    "inverseBindMatrices": buffer.add(_from_rest(skeleton), "MAT4"),
                }
            ],
            "animations": [_animation(buffer, skeleton, quaternions, wrist)],
        }
    )


def _skinning(buffer: GlbBuffer, model: HandModel) -> dict[str, int]:
    """Append the strongest bones of each vertex and their weights."""
    joints = np.argsort(-model.weights, axis=1, kind="stable")[:, :_BONES]
    weights = np.take_along_axis(model.weights, joints, 1).astype(np.float64)
    weights /= weights.sum(1, keepdims=True)
    # glTF requires bone 0 where the weight is 0.
    joints = np.where(weights > 0, joints, 0)
    return {
        "JOINTS_0": buffer.add(joints.astype("|u1"), "VEC4", VERTICES),
        "WEIGHTS_0": buffer.add(weights.astype("<f4"), "VEC4", VERTICES),
    }


def _from_rest(skeleton: Skeleton) -> NDArray[np.float32]:
    """Return the matrices (16, 16), column by column, from the mesh at rest to each joint's axes."""
    matrices = np.tile(np.eye(4), (16, 1, 1))
    matrices[:, :3, 3] = -skeleton.rest_m[:16]
    return matrices.swapaxes(1, 2).reshape(16, 16).astype("<f4")


def _animation(
    buffer: GlbBuffer, skeleton: Skeleton, quaternions: NDArray[np.floating], wrist: NDArray[np.floating]
) -> dict[str, Any]:
    times = buffer.add((skeleton.time_s - skeleton.time_s[0]).astype("<f4"), "SCALAR", bounds=True)
    channels = [(1, "translation", buffer.add(wrist, "VEC3"))]
    channels += [(1 + joint, "rotation", buffer.add(quaternions[:, joint], "VEC4")) for joint in range(16)]
    return {
        "name": "track",
        "samplers": [
            {"input": times, "interpolation": "LINEAR", "output": output} for _, _, output in channels
        ],
        "channels": [
            {"sampler": k, "target": {"node": node, "path": path}}
            for k, (node, path, _) in enumerate(channels)
        ],
    }
