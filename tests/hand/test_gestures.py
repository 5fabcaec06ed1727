"""Gestures keep the limits, and fingers meet where they should."""

from __future__ import annotations

import numpy as np
import pytest

from annotator.hand import anatomy, gestures
from tests.support.posed_joints import REST, gesture_joints_mm, naive_joints

PALM_MM = 1000 * np.linalg.norm(REST[9] - REST[0])


@pytest.mark.parametrize("name", list(gestures.GESTURES))
def test_every_gesture_keeps_the_limits(name):
    angles = gestures.gesture_angles(REST, name)
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
    joints = naive_joints(rest, gestures.gesture_pose(rest, "pinch"))
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
