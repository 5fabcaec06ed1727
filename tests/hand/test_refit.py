"""Poses refitted to joints: forward kinematics of the result give the joints back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from annotator.coordinates import mirror_points
from annotator.hand import anatomy, load_hand, plausible_poses
from annotator.hand.joint_angles import joint_angles_deg
from annotator.hand.layer import HandLayer
from annotator.hand.model import MOVING_ANGLES
from annotator.hand.refit import refit_pose, shaped_rest_joints, steadied

HAND = load_hand("open")
LAYER = HandLayer(HAND)
COUNT = 40


def articulated_mm(pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """Joints (n, 21, 3) of the hand layer's own skinning, wrist-relative."""
    rotations = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix().reshape(-1, 16, 3, 3)
    _, joints = LAYER.articulate(torch.from_numpy(rotations).float(), torch.from_numpy(betas).float())
    return 1000 * (joints - joints[:, :1]).numpy().astype(np.float64)


@pytest.fixture(scope="module")
def hands() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    fingers = plausible_poses.sample_poses(anatomy.rest_joints(HAND), COUNT, rng).reshape(COUNT, 45)
    return np.concatenate([rng.normal(0, 1.2, (COUNT, 3)), fingers], 1), rng.normal(0, 1, (COUNT, 10))


def test_joints_at_rest_are_those_of_the_layer(hands):
    _, betas = hands
    rest = shaped_rest_joints(HAND, betas)
    of_layer = articulated_mm(np.zeros((COUNT, 48)), betas)
    mano = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20]
    np.testing.assert_allclose(1000 * (rest - rest[:, :1]), of_layer[:, mano], atol=1e-3)


@pytest.mark.parametrize("is_right", [True, False])
def test_a_pose_with_errors_comes_to_the_joints_whatever_their_bone_lengths(hands, is_right):
    pose, betas = hands
    rng = np.random.default_rng(1)
    joints = articulated_mm(pose, betas)
    wrong = pose + rng.normal(0, 0.15, pose.shape)
    before = np.linalg.norm(articulated_mm(wrong, betas) - joints, axis=-1).mean()
    size = rng.uniform(0.8, 1.2, (COUNT, 1, 1))
    shown = size * (joints if is_right else mirror_points(joints))
    fitted = refit_pose(HAND, wrong, betas, shown, np.full(COUNT, is_right))
    np.testing.assert_allclose(articulated_mm(fitted, betas), joints, atol=0.01)
    assert before > 10
    # Twists stay as they were, so a joint that bends in one axis comes close to it.
    found, true, off = (joint_angles_deg(HAND, one)[:, list(MOVING_ANGLES)] for one in (fitted, pose, wrong))
    assert np.abs(found - true).mean() < 0.5 * np.abs(off - true).mean()


def test_a_pose_that_fits_stays_and_joints_without_extent_or_number_decide_nothing(hands):
    pose, betas = hands
    right = np.ones(COUNT, bool)
    joints = articulated_mm(pose, betas)
    rotations = [
        Rotation.from_rotvec(one.reshape(-1, 3))
        for one in (pose, refit_pose(HAND, pose, betas, joints, right))
    ]
    assert (rotations[0].inv() * rotations[1]).magnitude().max() < 1e-3
    flat = refit_pose(HAND, pose, betas, np.zeros((COUNT, 21, 3)), right)
    assert (rotations[0].inv() * Rotation.from_rotvec(flat.reshape(-1, 3))).magnitude().max() < 1e-6
    joints[3, 5, 0] = np.nan
    fitted = refit_pose(HAND, pose, betas, joints, right)
    assert np.isnan(fitted[3]).all() and np.isfinite(np.delete(fitted, 3, 0)).all()


def test_a_track_keeps_a_lasting_difference_and_loses_the_rounding_of_its_joints():
    frames = np.arange(50)[:, None]
    rng = np.random.default_rng(2)
    pose = 0.3 * np.sin(0.05 * frames + rng.uniform(0, 6, 48))
    betas, right = np.zeros((50, 10)), np.ones(50, bool)
    joints = articulated_mm(pose + 0.1 * rng.normal(size=48), betas)
    rounded = np.rint(joints * 16) / 16
    smooth = refit_pose(HAND, pose, betas, rounded, right, np.zeros(50, int))
    single = refit_pose(HAND, pose, betas, rounded, right)
    jerks = [np.abs(np.diff(one, 3, axis=0)).mean() for one in (smooth, single)]
    assert jerks[0] < 0.1 * jerks[1]
    assert np.linalg.norm(articulated_mm(smooth, betas) - joints, axis=-1).max() < 0.3
    own = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix().reshape(-1, 16, 3, 3)
    rotated = own @ Rotation.from_rotvec([0.1, 0.2, -0.3]).as_matrix()
    np.testing.assert_allclose(steadied(own, rotated), rotated, atol=1e-9)
