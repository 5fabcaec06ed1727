"""Poses whose bones point as given joints do: `joints3d_mm` of labels are refined beyond the pose beside them.

Every rotation changes as little as its bones need, so twists stay, and a smooth motion stays smooth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from annotator.coordinates import mirror_points
from annotator.hand.model import MANO_FROM_FREIHAND, HandModel

Floats = NDArray[np.floating]

#: Joints 1 of all fingers, which move with the wrist alone.
PALM = [1, 4, 7, 10, 13]

#: The joint at the end of the bone that each joint rotates; the wrist rotates the palm.
_TIPS = {3: 17, 6: 18, 9: 20, 12: 19, 15: 16}
CHILD = {k: _TIPS.get(k, k + 1) for k in range(1, 16)}

#: Standard deviation of the window over which distances from a track's poses are averaged.
_STEADY_FRAMES = 1.5

#: Weight of the pose's own rotation of the wrist: it decides where a palm has no extent.
_OWN_ROTATION = 1e-6

#: Cosine below which a bone points backwards: the least rotation is then arbitrary, and it stays as it is.
_BACKWARDS = -0.999


def shaped_rest_joints(model: HandModel, betas: Floats) -> Floats:
    """Return the joints (n, 21, 3) of shapes (n, 10) at rest, metres: MANO's 16, then the tips."""
    regressor = np.zeros((21, model.vertex_count))
    regressor[:16] = model.J_regressor
    regressor[np.arange(16, 21), model.tip_vertices] = 1
    directions = np.einsum("jv,vck->jck", regressor, model.shapedirs.astype(np.float64))
    joints: Floats = regressor @ model.v_template + np.einsum("jck,nk->njc", directions, betas)
    return joints


def refit_rotations(rest: Floats, rotations: Floats, joints: Floats) -> Floats:
    """Return rotations (n, 16, 3, 3) near `rotations` under which bones point as joints do.

    Args:
        rest: joints at rest (n, 21, 3), of any bone lengths.
        rotations: (n, 16, 3, 3) of each joint in its parent's axes.
        joints: (n, 21, 3) in MANO's order, tips last, wrist-relative, in the unit of `rest`.
    """
    palm, seen = rest[:, PALM] - rest[:, :1], joints[:, PALM] - joints[:, :1]
    across = seen.swapaxes(1, 2) @ palm
    own = _OWN_ROTATION * np.square(palm).sum((1, 2))[:, None, None] * rotations[:, 0]
    left, _, right = np.linalg.svd(across + own)
    left[..., 2] *= np.linalg.det(left @ right)[:, None]
    found = np.empty_like(rotations)
    found[:, 0] = left @ right
    chained = found.copy()  # in the wrist's own axes
    for joint, child in CHILD.items():
        parent = chained[:, 0 if joint in PALM else joint - 1]
        before = parent @ rotations[:, joint]
        bone = (before @ (rest[:, child] - rest[:, joint])[..., None])[..., 0]
        chained[:, joint] = _least_rotations(bone, joints[:, child] - joints[:, joint]) @ before
        found[:, joint] = parent.swapaxes(1, 2) @ chained[:, joint]
    return found


def _least_rotations(bones: Floats, wanted: Floats) -> Floats:
    """Return the smallest rotations (n, 3, 3) that point bones (n, 3) in wanted directions (n, 3)."""
    lengths = np.linalg.norm(bones, axis=1) * np.linalg.norm(wanted, axis=1)
    scale = np.where(lengths > 0, lengths, 1)
    cosine = (bones * wanted).sum(1) / scale
    x, y, z = np.cross(bones, wanted).T / scale
    zero = np.zeros_like(x)
    skew = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    rotations = np.eye(3) + skew + skew @ skew / np.maximum(1 + cosine, 1e-9)[:, None, None]
    moves = (lengths > 0) & (cosine > _BACKWARDS)
    return np.where(moves[:, None, None], rotations, np.eye(3))


def steadied(rotations: Floats, refitted: Floats) -> Floats:
    """Return refitted rotations (T, 16, 3, 3) of successive frames whose distance from `rotations` changes smoothly.

    Tracked poses and joints are smooth, but joints are stored in steps of 1/16 mm: 0.2 degrees of a short bone.
    """
    moves = Rotation.from_matrix((rotations.swapaxes(-1, -2) @ refitted).reshape(-1, 3, 3)).as_rotvec()
    smooth = gaussian_filter1d(moves.reshape(len(rotations), -1), _STEADY_FRAMES, axis=0, mode="nearest")
    found: Floats = rotations @ Rotation.from_rotvec(smooth.reshape(-1, 3)).as_matrix().reshape(
        rotations.shape
    )
    return found


def refit_pose(
    model: HandModel,
    pose: Floats,
    betas: Floats,
    joints3d_mm: Floats,
    is_right: NDArray[np.bool_],
    tracks: NDArray[np.integer] | None = None,
) -> NDArray[np.float64]:
    """Return poses (n, 48) whose bones point as the joints of labels do; NaN where one of their numbers is.

    Args:
        model: of the labels.
        pose: (n, 48), betas: (n, 10), joints3d_mm: (n, 21, 3), is_right: (n,) as labels have them.
        tracks: (n,) the track of each hand, in the order of its frames; None: hands are of single photos.
    """
    found = np.full(pose.shape, np.nan)
    parts = (pose, betas, joints3d_mm.reshape(len(pose), -1))
    is_complete = np.logical_and.reduce([np.isfinite(part).all(1) for part in parts])
    if not is_complete.any():
        return found
    joints = np.where(is_right[:, None, None], joints3d_mm, mirror_points(joints3d_mm))[is_complete]
    rotations = Rotation.from_rotvec(pose[is_complete].reshape(-1, 3)).as_matrix().reshape(-1, 16, 3, 3)
    fitted = refit_rotations(
        shaped_rest_joints(model, betas[is_complete]),
        rotations,
        joints[:, list(MANO_FROM_FREIHAND)].astype(np.float64) / 1000,
    )
    if tracks is not None:
        for track in np.unique(tracks[is_complete]):
            own = tracks[is_complete] == track
            fitted[own] = steadied(rotations[own], fitted[own])
    found[is_complete] = Rotation.from_matrix(fitted.reshape(-1, 3, 3)).as_rotvec().reshape(-1, 48)
    return found
