"""Joint angles: read back from poses that were built of them, and measured on joints that were posed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import roma
import torch
from scipy.spatial.transform import Rotation

from annotator.hand import anatomy, gestures, load_hand, plausible_poses
from annotator.hand.joint_angles import joint_angles_deg
from annotator.hand.layer import HandLayer
from annotator.hand.model import ANGLE_NAMES, FREIHAND_FROM_MANO, MOVING_ANGLES

HAND = load_hand("open")
REST = anatomy.rest_joints(HAND)


def with_wrist(pose: np.ndarray) -> np.ndarray:
    wrist = np.random.default_rng(5).normal(size=(len(pose), 3))
    return np.concatenate([wrist, pose], 1)


def test_the_angles_that_made_a_pose_are_read_from_it():
    drawn = plausible_poses.sample_angles(REST, 200, np.random.default_rng(0))
    found = joint_angles_deg(HAND, with_wrist(anatomy.pose_from_angles(REST, drawn)))
    assert found.shape == (200, 45) and len(ANGLE_NAMES) == 45 and len(MOVING_ANGLES) == 20
    by_name = dict(zip(ANGLE_NAMES, found.T, strict=True))
    for finger, name in enumerate(("thumb", "index", "middle", "ring", "little")):
        np.testing.assert_allclose(by_name[f"{name}_1_spread"], drawn[:, finger, 0], atol=1e-3)
        for joint in (1, 2, 3):
            np.testing.assert_allclose(by_name[f"{name}_{joint}_flexion"], drawn[:, finger, joint], atol=1e-3)
    still = [k for k in range(45) if k not in MOVING_ANGLES]
    np.testing.assert_allclose(found[:, still], 0, atol=1e-3)


def test_all_45_angles_give_any_pose_back():
    """Spread, twist and flexion about the axes of each joint; the thumb's first joint has an order of its own."""
    rng = np.random.default_rng(1)
    pose = rng.normal(0, 0.35, (50, 48))
    rotations = np.radians(joint_angles_deg(HAND, pose)).reshape(50, 5, 3, 3)
    axes = anatomy.joint_axes(REST)
    rotations[:, :, 0, 0] -= np.radians(axes.rest_angles[:, 0])
    rotations[..., 1] -= np.radians(axes.rest_angles[:, 1:])
    order = np.array(FREIHAND_FROM_MANO[1:]).reshape(5, 4)[:, :3]
    for finger in range(5):
        for joint in range(3):
            bone, bend = axes.twist[finger, joint], axes.flexion[finger, joint]
            spread, flexion, twist = rotations[:, finger, joint].T
            if (finger, joint) == (0, 0):
                twist = twist - 0.5 * flexion + 0.5 * spread
                steps = [(axes.spread[0, 0], spread), (bend, flexion), (bone, twist)]
            else:
                across = np.cross(bone, bend) if joint else axes.spread[finger, 0]
                middle = np.cross(bend, across)
                steps = [(across, spread), (middle, twist), (bend, flexion)]
            made = Rotation.identity()
            for axis, angle in steps:
                made = made * Rotation.from_rotvec(angle[:, None] * axis / np.linalg.norm(axis))
            wanted = Rotation.from_rotvec(pose.reshape(50, 16, 3)[:, order[finger, joint]])
            assert (made.inv() * wanted).magnitude().max() < 2e-3, (finger, joint)


@pytest.mark.parametrize("finger", range(1, 5))
def test_flexion_is_the_angle_between_the_bones_of_a_posed_hand(finger):
    """The middle joint's angle is that of its two bones, as `HandLayer` poses them, for a hand of another shape too."""
    angles = np.repeat(gestures.GESTURES["flat"][None], 9, 0)
    angles[:, finger, 2] = np.linspace(20, 80, 9)  # away from 0, where a bone out of the plane counts
    pose = anatomy.pose_from_angles(REST, angles)
    rotations = roma.rotvec_to_rotmat(torch.from_numpy(with_wrist(pose)).float().view(-1, 16, 3))
    betas = torch.from_numpy(np.tile(np.random.default_rng(2).normal(size=10), (9, 1))).float()
    _, joints = HandLayer(HAND).articulate(rotations, betas)
    bones = np.diff(joints.numpy()[:, 1 + 4 * finger : 5 + 4 * finger], axis=1)[:, :2]
    bones /= np.linalg.norm(bones, axis=-1, keepdims=True)
    measured = np.degrees(np.arccos((bones[:, 0] * bones[:, 1]).sum(-1)))
    found = joint_angles_deg(HAND, with_wrist(pose))[:, finger * 9 + 4]
    np.testing.assert_allclose(np.diff(found), np.diff(measured), atol=0.2)
    np.testing.assert_allclose(found, measured, atol=6)


def test_a_pose_that_is_not_a_number_has_no_angles():
    pose = np.zeros((2, 48))
    pose[1, 7] = np.nan
    found = joint_angles_deg(HAND, pose)
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


def test_angles_are_those_of_the_models_own_axes():
    """A model rotated about the vertical as a whole, with its poses, has the same angles."""
    rotation = Rotation.from_rotvec([0, 0.7, 0]).as_matrix()
    other = dataclasses.replace(HAND, v_template=(HAND.v_template @ rotation.T).astype(np.float32))
    pose = np.random.default_rng(3).normal(0, 0.3, (20, 48))
    rotated = (pose.reshape(20, 16, 3) @ rotation.T).reshape(20, 48)
    np.testing.assert_allclose(joint_angles_deg(other, rotated), joint_angles_deg(HAND, pose), atol=2e-3)
