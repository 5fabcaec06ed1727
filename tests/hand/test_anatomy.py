from __future__ import annotations

import numpy as np
import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.hand import anatomy, gestures, plausible_poses
from tests.support.posed_joints import REST, gesture_joints_mm, naive_joints

BENT = [name for name in gestures.GESTURES if name not in ("open_palm", "flat")]


def test_the_rest_angles_give_the_zero_pose():
    rest_angles = anatomy.joint_axes(REST).rest_angles
    assert np.abs(anatomy.pose_from_angles(REST, rest_angles[None])).max() < 1e-9


def test_axes_are_unit_and_flexion_rotates_the_bone_towards_the_palm():
    axes = anatomy.joint_axes(REST)
    for array in (axes.flexion, axes.spread, axes.twist):
        np.testing.assert_allclose(np.linalg.norm(array, axis=-1), 1, atol=1e-9)
    # Rest frame: the palm faces -y, the thumb is at +z.
    assert (np.cross(axes.flexion[1:], axes.twist[1:])[..., 1] < -0.7).all()
    assert (np.cross(axes.spread[1:], axes.twist[1:])[..., 2] > 0.7).all()


def test_angles_are_anatomical_on_straight_parallel_fingers():
    angles = np.zeros((1, 5, 4))
    angles[0, 0] = [40, 30, 10, 10]
    fingers = anatomy.pose_joints(REST, angles)[0, 5:].reshape(4, 4, 3)
    bones = np.diff(fingers, axis=1)[:, 0]
    bones /= np.linalg.norm(bones, axis=1, keepdims=True)
    assert (bones[:, 0] < -0.99).all()


def test_pose_joints_agree_with_a_naive_chain_over_the_pose():
    angles = plausible_poses.sample_angles(REST, 20, np.random.default_rng(1))
    poses = anatomy.pose_from_angles(REST, angles)
    naive = np.stack([naive_joints(REST, pose) for pose in poses])
    np.testing.assert_allclose(anatomy.pose_joints(REST, angles), naive, atol=1e-12)


@pytest.mark.parametrize("name", BENT)
def test_chirality_tells_right_from_left_in_bent_gestures(name):
    joints = gesture_joints_mm(name)
    assert anatomy.chirality(joints) > 0
    assert anatomy.chirality(joints * [1, 1, -1]) < 0


def test_chirality_tells_right_from_left_in_sampled_poses():
    joints = anatomy.pose_joints(REST, plausible_poses.sample_angles(REST, 200, np.random.default_rng(5)))
    assert (anatomy.chirality(joints) > 0).all()
    assert (anatomy.chirality(joints * [-1, 1, 1]) < 0).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6))
def test_chirality_does_not_change_under_rotation_and_translation(numbers):
    rotation = roma.rotvec_to_rotmat(torch.tensor(numbers[:3], dtype=torch.float64)).numpy()
    joints = gesture_joints_mm("relaxed") / 100
    moved = joints @ rotation.T + np.array(numbers[3:])
    np.testing.assert_allclose(anatomy.chirality(moved), anatomy.chirality(joints), rtol=1e-9)
