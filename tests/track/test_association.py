"""Hands joined over frames: crossings, gaps, cuts, sides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from annotator.labels.side import right_scores
from annotator.track.association import Hands, track_ids
from annotator.track.gaps import frames_to_fill, hold_constant_ends
from annotator.track.shape import one_shape
from annotator.track.side import side_of

SIZE_PX = 100.0


def moving(position_px, right, frames=None, shape=0.0, seed=0, rgb=np.nan):
    """One hand whose middle is at (T, 2) pixels; its fingers differ by the seed."""
    position_px = np.asarray(position_px, float)
    count = len(position_px)
    fingers = np.random.default_rng(seed).uniform(-SIZE_PX / 2, SIZE_PX / 2, (21, 2))
    return Hands(
        frame=np.arange(count) if frames is None else np.asarray(frames),
        joints2d_px=fingers + position_px[:, None],
        box_xyxy=np.concatenate([position_px - SIZE_PX / 2, position_px + SIZE_PX / 2], 1),
        right=np.full(count, right),
        betas=np.full((count, 10), shape),
        rgb=np.full((count, 3), rgb),
    )


def together(*hands):
    """Several hands in one sequence, by frame; and whose each row is."""
    frame = np.concatenate([one.frame for one in hands])
    order = np.argsort(frame, kind="stable")
    names = ("joints2d_px", "box_xyxy", "right", "betas", "rgb")
    fields = [np.concatenate([getattr(one, name) for one in hands])[order] for name in names]
    whose = np.concatenate([np.full(len(one), k) for k, one in enumerate(hands)])[order]
    return Hands(frame[order], *fields), whose


def times(count):
    return np.arange(count) / 30


def across(count, start, end):
    return np.linspace(start, end, count)


@pytest.mark.parametrize("sides", [(0.9, 0.1), (0.9, 0.9), (0.5, 0.5)])
def test_hands_that_cross_keep_their_ids(sides):
    one = moving(across(40, (0, 0), (400, 20)), sides[0], seed=1)
    other = moving(across(40, (400, 0), (0, -20)), sides[1], seed=2)
    hands, whose = together(one, other)
    ids = track_ids(hands, times(40), 5)
    assert set(zip(whose.tolist(), ids.tolist(), strict=True)) == {(0, ids[0]), (1, ids[1])}
    assert set(ids.tolist()) == {0, 1}


def test_two_alike_hands_that_cross_go_on_as_they_moved():
    """Same side, shape and fingers: only their motion tells them apart."""
    one = moving(across(30, (0, 0), (450, 0)), 0.9, seed=1)
    other = moving(across(30, (450, 10), (0, 10)), 0.9, seed=1)
    hands, whose = together(one, other)
    ids = track_ids(hands, times(30), 5)
    assert len(set(zip(whose.tolist(), ids.tolist(), strict=True))) == 2


def test_a_hand_is_found_again_after_a_short_gap_and_not_after_a_long_one():
    position = across(40, (0, 0), (200, 0))
    for missing, tracks in ((5, 1), (6, 2)):
        frames = np.array([k for k in range(40) if not 10 <= k < 10 + missing])
        ids = track_ids(moving(position[frames], 0.8, frames), times(40), max_gap=5)
        assert len(set(ids.tolist())) == tracks


def test_a_long_time_between_two_frames_is_a_gap_too():
    """Numbers of frames that are not in the set are not seen; their times are."""
    time_s = np.concatenate([times(10), 5 + times(10)])
    assert set(track_ids(moving(np.zeros((20, 2)), 0.8), time_s, 10).tolist()) == {0, 1}


def test_a_cut_ends_all_tracks():
    before = [moving(np.full((10, 2), position), 0.8, seed=k) for k, position in enumerate((100.0, 400.0))]
    after = [
        moving(np.full((10, 2), position), 0.8, np.arange(10, 20), seed=k)
        for k, position in enumerate((250.0, 700.0), 5)
    ]
    hands, whose = together(*before, *after)
    ids = track_ids(hands, times(20), 10)
    assert [set(ids[whose == k].tolist()) for k in range(4)] == [{0}, {1}, {2}, {3}]


@pytest.mark.parametrize(
    "seed, rgb, gap, tracks",
    [
        (1, 70.0, 0, [0, 1]),  # another hand, in other light
        (1, 95.0, 0, [0]),  # fingers that move, in much the same light
        (0, 70.0, 0, [0]),  # a lamp
        (1, np.nan, 0, [0]),  # labels without colours
        (1, 70.0, 6, [0]),  # light may change in a while
        (1, 10.0, 6, [0, 1]),
    ],
)
def test_a_cut_to_a_hand_at_the_same_position_ends_a_track_if_its_colour_changes_too(seed, rgb, gap, tracks):
    before = moving(np.full((10, 2), 200.0), 0.8, rgb=120.0)
    after = moving(np.full((10, 2), 205.0), 0.8, np.arange(10 + gap, 20 + gap), seed=seed, rgb=rgb)
    hands, whose = together(before, after)
    ids = track_ids(hands, times(20 + gap), 10)
    assert sorted(set(ids.tolist())) == tracks and ids[whose == 1].tolist() == [tracks[-1]] * 10


def test_a_track_does_not_go_on_after_a_cut_where_the_new_shot_shows_a_hand_elsewhere_first():
    before = moving(np.full((10, 2), 200.0), 0.8, rgb=120.0)
    after = moving([(500, 200)] * 4 + [(205, 200)] * 4, 0.8, np.arange(10, 18), seed=1, rgb=60.0)
    hands, whose = together(before, after)
    ids = track_ids(hands, times(18), 10)
    assert ids[whose == 0].tolist() == [0] * 10 and 0 not in ids[whose == 1]


def test_a_hand_that_goes_behind_another_stays_the_same():
    """One hand of two changes in colour and pose for three frames."""
    one, other = (moving(across(30, (k, 0), (k + 30, 0)), 0.8, seed=k, rgb=120.0) for k in (0, 130))
    hidden = slice(14, 17)
    other.rgb[hidden] = 60.0
    other.joints2d_px[hidden] = moving(np.tile([145.0, 0.0], (3, 1)), 0.8, seed=9).joints2d_px
    hands, whose = together(one, other)
    ids = track_ids(hands, times(30), 10)
    assert ids[whose == 0].tolist() == [0] * 30 and ids[whose == 1].tolist() == [1] * 30


def test_one_frame_and_an_empty_sequence_have_tracks_of_their_own():
    assert track_ids(moving([(0, 0)], 0.8), np.zeros(1), 10).tolist() == [0]
    assert track_ids(moving(np.zeros((0, 2)), 0.8), times(3), 10).tolist() == []


def test_a_side_that_flips_does_not_end_a_track():
    hand = moving(across(30, (0, 0), (90, 0)), 0.9)
    right = np.where(np.arange(30) % 7 == 3, 0.2, 0.9)
    ids = track_ids(replace(hand, right=right), times(30), 5)
    assert set(ids.tolist()) == {0}


def test_the_side_of_a_track_is_that_of_the_larger_sum_of_log_odds():
    is_right = np.array([True, True, True, False])
    assert side_of(is_right, np.array([0.55, 0.55, 0.55, 0.99])).is_right is False
    found = side_of(is_right, np.array([0.9, 0.9, 0.9, 0.99]))
    assert found.is_right and found.score == pytest.approx((0.9 * 3 + 0.01) / 4)
    assert side_of(np.array([False, False]), np.array([0.5, 0.5])).is_right is False
    given = side_of(np.array([False, False]), np.array([np.nan, np.nan]))
    assert given == (False, None)
    assert right_scores(is_right, np.array([0.8, np.nan, 0.6, 0.7])).tolist() == pytest.approx(
        [0.8, 1, 0.6, 0.3]
    )


def test_a_shape_is_the_likeliest_of_gaussian_measurements():
    """Against the minimum of the sum of squares over variance, found by a general solver."""
    rng = np.random.default_rng(3)
    betas, variance = rng.normal(size=(6, 10)), rng.uniform(0.5, 9, 6)
    design = np.repeat(1 / np.sqrt(variance), 10)[:, None] * np.tile(np.eye(10), (6, 1))
    target = (betas / np.sqrt(variance)[:, None]).ravel()
    expected = np.linalg.lstsq(design, target, rcond=None)[0]
    np.testing.assert_allclose(one_shape(betas, variance), expected, atol=1e-12)


def test_gaps_are_filled_inside_a_track_where_there_is_a_row():
    fillable = np.ones(12, bool)
    fillable[6] = False
    assert frames_to_fill(np.array([2, 3, 7, 9]), fillable).tolist() == [4, 5, 8]
    observed = np.array([False, True, True, False, True, False])
    assert hold_constant_ends(np.arange(6.0), observed).tolist() == [1, 1, 2, 3, 4, 4]
