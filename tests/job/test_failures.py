"""The failure policy alone: no Ray, no processes."""

from __future__ import annotations

import pytest

from annotator import UserError
from annotator.job import failures
from annotator.job.failures import (
    Action,
    ShardFailures,
    after_decode_crash,
    after_hand_crash,
    after_predict_crash,
    blame,
    deaths_in_a_row,
)
from annotator.job.hand_by_hand import FIRST_DEATHS, HAND_DEATHS, HandByHand, SingleHand


@pytest.mark.parametrize(
    ("entries", "crashes", "action"),
    [
        (256, 1, Action.RETRY),
        (256, 2, Action.SPLIT),
        (1, 2, Action.RETRY),
        (1, 3, Action.GIVE_UP),
    ],
)
def test_a_shard_is_split_after_two_crashes_and_a_photo_given_up_after_three(entries, crashes, action):
    assert after_decode_crash(entries, crashes) is action


def crashes_until_done(entries: int, poisoned: int) -> int:
    """Decode a shard as the dispatcher does; return how many processes its poisoned photos crash."""
    crashes, total, pieces = 0, 0, [(entries, poisoned, 0)]
    while pieces:
        size, bad, crashes = pieces.pop(0)
        if not bad:
            continue
        crashes, total = crashes + 1, total + 1
        action = after_decode_crash(size, crashes)
        if action is Action.SPLIT:
            pieces = [(1, int(k < bad), 0) for k in range(size)]
        elif action is Action.RETRY:
            pieces.append((size, bad, crashes))
    return total


def test_poisoned_photos_cost_two_crashes_of_the_shard_and_three_each():
    assert crashes_until_done(16, 0) == 0
    assert crashes_until_done(16, 3) == 2 + 3 * 3
    assert crashes_until_done(1, 1) == 3


def test_a_shard_of_one_hand_is_reopened_twice_and_given_up_after_three_models():
    shard = ShardFailures()
    actions = []
    for _ in range(3):
        blame(shard)
        actions.append(after_predict_crash(shard))
    assert actions == [Action.DECODE_AGAIN, Action.DECODE_AGAIN, Action.GIVE_UP]


def test_two_dead_models_make_a_shard_suspect():
    shard = ShardFailures()
    states = []
    for _ in range(2):
        states.append(shard.is_suspect)
        blame(shard)
    assert [*states, shard.is_suspect] == [False, False, True]


def split_shard(count: int) -> HandByHand:
    return HandByHand.of(None, None, count)


def crash(hand: SingleHand) -> Action:
    blame(hand)
    return after_hand_crash(hand, worker_died=True)


def test_a_hand_among_good_ones_is_given_up_after_three_models():
    shard = split_shard(4)
    bad, good = shard.hands[:2]
    assert crash(bad) is Action.RETRY
    shard.ended(good, "labelled", is_labelled=True)
    assert [crash(bad), crash(bad)] == [Action.RETRY, Action.GIVE_UP_HAND]
    assert bad.deaths == HAND_DEATHS and good.deaths == 0


def test_a_shard_whose_first_hands_all_crash_is_given_up():
    shard = split_shard(100)
    assert [crash(hand) for hand in shard.hands[:FIRST_DEATHS]] == [
        *[Action.RETRY] * (FIRST_DEATHS - 1),
        Action.GIVE_UP,
    ]


def test_a_lost_machine_reopens_the_shard_and_later_results_are_ignored():
    shard = split_shard(3)
    assert after_hand_crash(shard.hands[0], worker_died=False) is Action.DECODE_AGAIN
    assert shard.deaths == 0
    shard.is_over = True
    for worker_died in (True, False):
        assert after_hand_crash(shard.hands[1], worker_died) is Action.IGNORE


def test_five_models_in_a_row_end_the_run_and_a_finished_shard_starts_over():
    error = RuntimeError("\n  the worker died\nmore")
    deaths = 0
    for expected in (1, 2, 3, 4):
        deaths = deaths_in_a_row(deaths, 0, False, error)
        assert deaths == expected
    assert deaths_in_a_row(deaths, 1, False, error) == 0
    assert deaths_in_a_row(deaths, 0, True, error) == deaths  # counts against the hand
    with pytest.raises(UserError, match=r"^workers died 5 times .*\(the worker died\).* again to resume$"):
        deaths_in_a_row(deaths, 0, False, error)


def test_lost_data_is_decoded_again_twenty_times():
    shard = ShardFailures()
    for _ in range(failures.MAX_DATA_LOSSES):
        shard.lose(OSError("gone"))
    with pytest.raises(UserError, match=r"died 21 times on one shard \(gone\)"):
        shard.lose(OSError("gone"))


def test_a_store_that_fails_is_retried_after_doubling_pauses():
    shard, error = ShardFailures(), OSError(28, "No space left on device", "/labels/data")
    assert [shard.store_failed(error, "labels") for _ in range(3)] == [2.0, 4.0, 8.0]
    with pytest.raises(UserError, match=r"^'/labels/data' could not be read or written: No space left"):
        shard.store_failed(error, "labels")
    silent = ShardFailures(store_tries=3)
    with pytest.raises(UserError, match=r"^'labels' could not be read or written: timed out"):
        silent.store_failed(OSError("timed out"), "labels")


def test_time_limits():
    assert failures.hang_limit_s(256) == 240 + 5 * 256
    failures.check_start(1800)
    with pytest.raises(UserError, match="no worker found a free processor within 30 minutes"):
        failures.check_start(1801)
