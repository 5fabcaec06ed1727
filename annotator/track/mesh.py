"""The meshes of a smoothed track, in blocks of frames: memory does not grow with a track's length.

A network's offsets from its parametric hand are smoothed like the other channels. Their states are filtered forwards
once, with the state at the start of each block kept. Then each block, from the last to the first, is filtered again and
smoothed backwards. Offsets before and after smoothing lie in a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from annotator.coordinates import mirror_points, rotation_matrices
from annotator.hand.layer import HandLayer
from annotator.track.disk_array import DiskArray
from annotator.track.gaps import held_frames
from annotator.track.posterior import BLOCK, posterior_std_blocks
from annotator.track.smoother import Noise, Observations, filtered, gains, prior_mean, smoothed_back
from annotator.track.vertex_columns import VertexRows

Floats = NDArray[np.floating]

#: Hands that are posed together, a multiple of `BLOCK`.
_POSED = 2 * BLOCK


@dataclass(frozen=True, eq=False)
class MeshPath:
    """The smoothed motion that a track's meshes follow, over T frames."""

    time_s: Floats  # (T,)
    observed: NDArray[np.bool_]  # (T,)
    variance: Floats  # (T,) of a measurement
    noise: Noise  # of offsets from the parametric hand
    is_right: bool
    label_pose: Floats  # (T, 48); any numbers where not observed
    label_betas: Floats  # (T, 10)
    pose: Floats  # (T, 48)
    betas: Floats  # (T, 10)
    rotation: Floats  # (T, 3, 3) the wrist's rotation
    share: float  # of scatter, over the predicted variance
    variance_ratio: Floats  # (T,) the smoother's variance over a usual one
    size: Floats  # (T,) factor on the smoothed hand, from the wrist


@torch.inference_mode()
def unrotated_hands(layer: HandLayer, pose: Floats, betas: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Yield joints (n, 21, 3) and vertices (n, V, 3) of the right hand at its fingers' pose, the wrist not rotated."""
    for first in range(0, len(pose), _POSED):
        rows = slice(first, first + _POSED)
        rotvec = pose[rows].reshape(-1, 16, 3).astype(np.float32).copy()
        rotvec[:, 0] = 0
        posed, of_joints = layer(
            torch.from_numpy(rotation_matrices(rotvec)), torch.from_numpy(betas[rows].astype(np.float32))
        )
        yield of_joints.numpy(), posed.numpy()


def track_meshes(
    layer: HandLayer, path: MeshPath, vertex_rows: VertexRows, rows: NDArray[np.int64]
) -> Iterator[tuple[Floats, Floats]]:
    """Yield vertices and their std (n, V, 3) of a track's frames, block after block.

    Args:
        layer: of the labels' hand model.
        path: the smoothed track.
        vertex_rows: the labels' meshes. rows: (T,) the row of each frame's label there, -1 where there is none.
    """
    labelled_std = vertex_rows.columns["vertices_std_mm"]
    of_std = posterior_std_blocks(
        path.time_s,
        path.observed,
        lambda frames: labelled_std.read(rows[frames]),
        _always_zero(labelled_std, rows[path.observed]),
        path.share,
        path.variance_ratio,
    )
    offsets = _smoothed_offsets(layer, path, vertex_rows.columns["vertices_mm"], rows)
    held = held_frames(path.observed)
    for number, (_, posed) in enumerate(unrotated_hands(layer, path.pose, path.betas)):
        part = slice(number * _POSED, (number + 1) * _POSED)
        size = path.size[part, None, None].astype(np.float32)
        points = (
            size * (posed + offsets.read(held[part])) @ path.rotation[part].swapaxes(1, 2).astype(np.float32)
        )
        std = size * np.concatenate([*islice(of_std, 2)])
        yield points if path.is_right else mirror_points(points), std


def _always_zero(std: DiskArray, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return where (V, 3) the std of all these rows is zero."""
    zero = [(std.read(rows[k : k + BLOCK]) == 0).all(0) for k in range(0, len(rows), BLOCK)]
    return np.logical_and.reduce(zero)


def _smoothed_offsets(
    layer: HandLayer, path: MeshPath, vertices: DiskArray, rows: NDArray[np.int64]
) -> DiskArray:
    """Return the offsets (T, V, 3) of a track's meshes from its parametric hand, smoothed."""
    offsets, mean = _label_offsets(layer, path, vertices, rows)
    observations = Observations(path.time_s, np.empty((len(rows), 0)), path.variance, path.observed)
    by = gains(observations, path.noise)

    def values(first: int) -> Floats:
        frames = np.arange(first, min(first + BLOCK, len(rows)))
        return offsets.read(frames).reshape(len(frames), -1).astype(np.float64)

    firsts = range(0, len(rows), BLOCK)
    before = [prior_mean(mean)]
    for first in firsts[:-1]:
        before.append(
            filtered(by, values(first), before[-1], first)[0][-1].copy()
        )  # copied, to free the rest
    after = None
    for first, state in zip(reversed(firsts), reversed(before), strict=True):
        means, predicted = filtered(by, values(first), state, first)
        smoothed = smoothed_back(by, means, predicted, first, after)
        after = smoothed[0].copy(), predicted[0].copy()
        offsets.write(first, smoothed[:, 0])
    return offsets


def _label_offsets(
    layer: HandLayer, path: MeshPath, vertices: DiskArray, rows: NDArray[np.int64]
) -> tuple[DiskArray, Floats]:
    """Return the offsets (T, V, 3) of labels from their parametric hand, in its own axes, and the mean observed."""
    found: DiskArray | None = None
    total: Floats | None = None
    rotation = rotation_matrices(path.label_pose[:, :3].astype(np.float64)).astype(np.float32)
    for number, (_, parametric) in enumerate(unrotated_hands(layer, path.label_pose, path.label_betas)):
        part = slice(number * _POSED, (number + 1) * _POSED)
        shown = vertices.read(rows[part].clip(0))
        offset = (shown if path.is_right else mirror_points(shown)) @ rotation[part] - parametric
        flat = offset[path.observed[part]].reshape(-1, offset[0].size).astype(np.float64)
        found = found or DiskArray(offset.shape[1:], offset.dtype)
        found.write(part.start, offset)
        total = np.add.reduce(flat if total is None else np.concatenate([total[None], flat]), 0)
    assert found is not None and total is not None
    return found, total / path.observed.sum()
