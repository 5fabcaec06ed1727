from __future__ import annotations

import numpy as np
import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.hand import anatomy, load_hand

REST = anatomy.rest_joints(load_hand("open"))
PALM_MM = 1000 * np.linalg.norm(REST[9] - REST[0])
BENT = [name for name in anatomy.GESTURES if name not in ("open_palm", "flat")]


def naive_joints(rest: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Return the joints (21, 3) of one pose (45,), finger by finger, in MANO's order of fingers."""
    joints = rest.copy()
    for first, finger in zip((0, 3, 6, 9, 12), (1, 2, 4, 3, 0), strict=True):
        turned = np.eye(3)
        for k in range(3):
            rotvec = torch.from_numpy(pose.reshape(15, 3)[first + k])
            turned = turned @ roma.rotvec_to_rotmat(rotvec).numpy()
            here = 1 + 4 * finger + k
            joints[here + 1] = joints[here] + turned @ (rest[here + 1] - rest[here])
    return joints


def gesture_joints_mm(name: str) -> np.ndarray:
    return 1000 * naive_joints(REST, anatomy.gesture_pose(REST, name))


def test_the_rest_angles_give_the_zero_pose():
    rest_angles = anatomy.joint_axes(REST).rest_angles
    assert np.abs(anatomy.pose_from_angles(REST, rest_angles[None])).max() < 1e-9


def test_axes_are_unit_and_flexion_turns_the_bone_towards_the_palm():
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
    angles = anatomy.sample_angles(REST, 20, np.random.default_rng(1))
    poses = anatomy.pose_from_angles(REST, angles)
    naive = np.stack([naive_joints(REST, pose) for pose in poses])
    np.testing.assert_allclose(anatomy.pose_joints(REST, angles), naive, atol=1e-12)


def test_sampled_angles_keep_the_limits_and_are_reproducible():
    angles = anatomy.sample_angles(REST, 1000, np.random.default_rng(2))
    assert angles.shape == (1000, 5, 4)
    assert (angles >= anatomy.LIMITS[..., 0]).all()
    assert (angles <= anatomy.LIMITS[..., 1]).all()
    again = anatomy.sample_poses(REST, 1000, np.random.default_rng(2))
    np.testing.assert_array_equal(again, anatomy.pose_from_angles(REST, angles))


def test_sampled_fingers_move_together_and_outer_joints_follow():
    angles = anatomy.sample_angles(REST, 1000, np.random.default_rng(3))
    assert np.corrcoef(angles[:, 2, 2], angles[:, 3, 2])[0, 1] > 0.6
    assert np.corrcoef(angles[:, 2, 2], angles[:, 2, 3])[0, 1] > 0.9
    assert angles[:, 1:, 2].std() > 20


def test_sampled_fingers_do_not_intersect_each_other_or_the_palm():
    angles = anatomy.sample_angles(REST, 300, np.random.default_rng(4))
    joints = anatomy.pose_joints(REST, angles)
    middles = (
        joints[:, 1:].reshape(-1, 5, 4, 3)[:, :, :-1] + joints[:, 1:].reshape(-1, 5, 4, 3)[:, :, 1:]
    ) / 2
    for finger in range(1, 4):
        gap = np.linalg.norm(middles[:, finger, :, None] - middles[:, finger + 1, None], axis=-1)
        assert gap.min() > 0.008
    tips = joints[:, 8::4]
    over_palm = tips[..., 0] > REST[9, 0] * 0.9
    assert over_palm.any()
    assert tips[over_palm][:, 1].max() < -0.015


@pytest.mark.parametrize("name", list(anatomy.GESTURES))
def test_every_gesture_keeps_the_limits(name):
    angles = anatomy.gesture_angles(REST, name)
    assert (angles >= anatomy.LIMITS[..., 0]).all()
    assert (angles <= anatomy.LIMITS[..., 1]).all()


@pytest.mark.parametrize("name", ["pinch", "ok"])
def test_thumb_and_index_meet(name):
    joints = gesture_joints_mm(name)
    assert np.linalg.norm(joints[4] - joints[8]) < 15


@pytest.mark.parametrize("scale", [0.8, 1.15])
def test_thumb_and_index_meet_on_a_hand_with_another_thumb(scale):
    rest = REST.copy()
    rest[2:5] = rest[1] + scale * (rest[2:5] - rest[1])
    joints = naive_joints(rest, anatomy.gesture_pose(rest, "pinch"))
    assert np.linalg.norm(joints[4] - joints[8]) < 0.015


def test_in_a_fist_all_fingertips_are_near_the_palm_and_the_thumb_lies_over_the_fingers():
    joints = gesture_joints_mm("fist")
    assert (np.linalg.norm(joints[8::4] - joints[0], axis=1) < 0.8 * PALM_MM).all()
    assert (joints[8::4, 1] > -45).all()
    assert joints[4, 1] < joints[[8, 12], 1].min()


def test_pointing_straightens_the_index_alone():
    joints = gesture_joints_mm("pointing")
    reach = np.linalg.norm(joints[[8, 12, 16, 20]] - joints[0], axis=1)
    assert reach[0] > 1.7 * PALM_MM
    assert (reach[1:] < PALM_MM).all()


def test_thumb_up_leaves_the_fist_sideways():
    joints = gesture_joints_mm("thumb_up")
    assert joints[4, 2] > joints[5:, 2].max() + 20


@pytest.mark.parametrize("name", BENT)
def test_chirality_tells_right_from_left_in_bent_gestures(name):
    joints = gesture_joints_mm(name)
    assert anatomy.chirality(joints) > 0
    assert anatomy.chirality(joints * [1, 1, -1]) < 0


def test_chirality_tells_right_from_left_in_sampled_poses():
    joints = anatomy.pose_joints(REST, anatomy.sample_angles(REST, 200, np.random.default_rng(5)))
    assert (anatomy.chirality(joints) > 0).all()
    assert (anatomy.chirality(joints * [-1, 1, 1]) < 0).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6))
def test_chirality_does_not_change_under_rotation_and_translation(numbers):
    rotation = roma.rotvec_to_rotmat(torch.tensor(numbers[:3], dtype=torch.float64)).numpy()
    joints = gesture_joints_mm("relaxed") / 100
    moved = joints @ rotation.T + np.array(numbers[3:])
    np.testing.assert_allclose(anatomy.chirality(moved), anatomy.chirality(joints), rtol=1e-9)
