"""One track smoothed: one shape, and rotation, pose, joints, position and size over time; `mesh.py` has its meshes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.coordinates import mirror_points, rotation_matrices, rotation_vectors
from annotator.hand.layer import HandLayer
from annotator.track.gaps import hold_constant_ends
from annotator.track.mesh import MeshPath, unrotated_hands
from annotator.track.posterior import posterior_std, scatter_share, variance_ratio
from annotator.track.rotation_smoothing import smooth_rotations
from annotator.track.shape import joint_variance, one_shape
from annotator.track.smoother import Noise, Observations, Smoothed, fit_noise, smooth

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Motion:
    """A track over T frames as labels hold it: camera axes, wrist-relative.

    Behind a lens, position and size are in the photo of an ideal fisheye (`behind_lens.py`).
    """

    pose: Floats  # (T, 48)
    betas: Floats  # (T, 10)
    joints3d_mm: Floats  # (T, 21, 3)
    joints3d_std_mm: Floats  # (T, 21, 3)
    joints2d_std_px: Floats  # (T, 21, 2)
    scale_px: Floats  # (T,) of the weak-perspective camera, pixels per millimetre
    position_px: Floats  # (T, 2) its translation


def smoothed_motion(
    layer: HandLayer,
    labels: Motion,
    time_s: Floats,
    observed: NDArray[np.bool_],
    is_right: bool,
    shape: Floats | None = None,
) -> tuple[Motion, MeshPath | None]:
    """Smooth a track.

    Args:
        layer: of the labels' hand model.
        labels: of T frames; any numbers where not observed.
        time_s: (T,) increasing. observed: (T,) frames whose label is of the track's side, at least one.
        is_right: the track's side.
        shape: betas (10,) of the hand; None: the track's own.

    Returns:
        The smoothed track, and the path of its meshes; None for a single frame, which stays as it is.
    """
    if observed.sum() == 1 and len(observed) == 1:
        return labels, None
    variance = np.where(observed, joint_variance(labels.joints3d_std_mm), 1.0)
    usual = float(variance[observed].mean())
    rotations, pose = rotation_matrices(labels.pose[:, :3].astype(np.float64)), labels.pose[:, 3:]

    wrist = smooth_rotations(time_s, rotations, variance, observed)
    wrist_rotations = hold_constant_ends(wrist.rotations, observed)
    # A hand that is rotated the wrong way has fingers to match.
    variance = variance / wrist.weight
    fingers, of_fingers, finger_noise = _smoothed(time_s, pose, variance, observed)
    if shape is None:
        shape = one_shape(labels.betas[observed], variance[observed])
    betas: Floats = np.tile(shape, (len(time_s), 1))
    ratio = (
        variance_ratio(wrist.smoothed, wrist.noise, usual) + variance_ratio(of_fingers, finger_noise, usual)
    ) / 2

    # A network's offsets from its parametric hand are kept: they are smoothed in the hand's own axes.
    new_pose = np.concatenate([rotation_vectors(wrist_rotations), fingers], 1)
    before, after = (
        np.concatenate([joints for joints, _ in unrotated_hands(layer, *hand)])
        for hand in ((labels.pose, labels.betas), (new_pose, betas))
    )
    shown = labels.joints3d_mm if is_right else mirror_points(labels.joints3d_mm)
    raw = (shown @ rotations.astype(np.float32) - before).reshape(len(time_s), -1)
    offset, _, noise = _smoothed(time_s, raw, variance, observed)
    offset = offset.astype(np.float32).reshape(after.shape)
    joints = (after + offset) @ wrist_rotations.swapaxes(1, 2).astype(np.float32)
    joints = joints if is_right else mirror_points(joints)

    apart = (labels.joints3d_mm - joints)[observed, 1:]
    share = scatter_share(apart, labels.joints3d_std_mm[observed, 1:])
    of_image = _image(labels, time_s, observed)
    share_px = scatter_share(
        (labels.position_px - of_image.position_px)[observed, None], labels.joints2d_std_px[observed]
    )
    motion = Motion(
        pose=new_pose,
        betas=betas,
        joints3d_mm=joints,
        joints3d_std_mm=posterior_std(time_s, observed, labels.joints3d_std_mm, share, ratio),
        joints2d_std_px=posterior_std(
            time_s, observed, labels.joints2d_std_px, share_px, of_image.variance_ratio
        ),
        scale_px=of_image.scale_px,
        position_px=of_image.position_px,
    )
    return motion, MeshPath(
        time_s=time_s,
        observed=observed,
        variance=variance,
        noise=noise,
        is_right=is_right,
        label_pose=labels.pose,
        label_betas=labels.betas,
        pose=new_pose,
        betas=betas,
        rotation=wrist_rotations,
        share=share,
        variance_ratio=ratio,
        size=np.ones(len(time_s)),
    )


@dataclass(frozen=True, eq=False)
class _Image:
    scale_px: Floats  # (T,)
    position_px: Floats  # (T, 2)
    variance_ratio: Floats  # (T,)


def _image(labels: Motion, time_s: Floats, observed: NDArray[np.bool_]) -> _Image:
    """Smooth position and size in the photo by the variance of 2D joints."""
    variance = np.square(labels.joints2d_std_px, dtype=np.float64).mean((1, 2))
    variance = np.where(observed, np.maximum(variance, 1e-6), 1.0)
    position, of_position, noise = _smoothed(time_s, labels.position_px, variance, observed)
    log_scale = np.log(np.where(observed, labels.scale_px, 1.0))[:, None]
    size, _, _ = _smoothed(time_s, log_scale, variance * np.exp(2 * log_scale[:, 0]), observed)
    return _Image(
        np.exp(size[:, 0]), position, variance_ratio(of_position, noise, float(variance[observed].mean()))
    )


def _smoothed(
    time_s: Floats, values: Floats, variance: Floats, observed: NDArray[np.bool_]
) -> tuple[Floats, Smoothed, Noise]:
    """Smooth channels (T, C) that still have to be fitted."""
    observations = Observations(time_s, values.astype(np.float64), variance, observed)
    noise = fit_noise(observations)
    smoothed = smooth(observations, noise)
    return hold_constant_ends(smoothed.position, observed), smoothed, noise
