"""Random poses keep the limits, are correlated as fingers are, and do not intersect."""

from __future__ import annotations

import numpy as np

from annotator.hand import anatomy, plausible_poses
from tests.support.posed_joints import REST


def test_sampled_angles_keep_the_limits_and_are_reproducible():
    angles = plausible_poses.sample_angles(REST, 1000, np.random.default_rng(2))
    assert angles.shape == (1000, 5, 4)
    assert (angles >= anatomy.LIMITS[..., 0]).all()
    assert (angles <= anatomy.LIMITS[..., 1]).all()
    again = plausible_poses.sample_poses(REST, 1000, np.random.default_rng(2))
    np.testing.assert_array_equal(again, anatomy.pose_from_angles(REST, angles))


def test_sampled_fingers_move_together_and_outer_joints_follow():
    angles = plausible_poses.sample_angles(REST, 1000, np.random.default_rng(3))
    assert np.corrcoef(angles[:, 2, 2], angles[:, 3, 2])[0, 1] > 0.6
    assert np.corrcoef(angles[:, 2, 2], angles[:, 2, 3])[0, 1] > 0.9
    assert angles[:, 1:, 2].std() > 20


def test_sampled_fingers_do_not_intersect_each_other_or_the_palm():
    angles = plausible_poses.sample_angles(REST, 300, np.random.default_rng(4))
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
