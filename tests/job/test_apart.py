"""Which hand of a shard is at fault: the bookkeeping alone, and real processes that end over real photos."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from annotator.job.apart import FIRST_DEATHS, HAND_DEATHS, Apart
from annotator.job.dispatcher import SHARD_CRASHES
from tests.robustness.hostile_photos import encoded
from tests.support.dying_model import DEADLY, label_greys


def play(count: int, deadly: set[int]) -> tuple[Apart, int]:
    """Label hands one after the other as the dispatcher does; returns also how many models died."""
    shard = Apart.of(None, None, count)
    queue, deaths = deque(shard.in_any_order()), 0
    while queue:
        hand = queue.popleft()
        if hand.number not in deadly:
            shard.ended(hand, "labelled", is_labelled=True)
            continue
        shard.died(hand)
        deaths += 1
        if shard.is_hopeless:
            break
        if hand.deaths >= HAND_DEATHS:
            shard.ended(hand, "crashed", is_labelled=False)
        else:
            queue.append(hand)
    return shard, deaths


@pytest.mark.parametrize(("count", "deadly"), [(2, {0}), (2, {1}), (16, {3, 4}), (256, set(range(100, 140)))])
def test_all_but_the_deadly_ones_are_labelled(count, deadly):
    shard, deaths = play(count, deadly)
    assert {hand.number for hand in shard.hands if hand.data == "crashed"} == deadly
    assert shard.labelled == count - len(deadly) and shard.has_culprit
    assert deaths == HAND_DEATHS * len(deadly)


def test_a_shard_without_a_good_hand_is_given_up_soon():
    for count in (1, 2, 3, 1000):
        shard, deaths = play(count, set(range(count)))
        assert shard.is_hopeless and not shard.has_culprit
        assert deaths == min(FIRST_DEATHS, HAND_DEATHS * count)


def test_a_shard_whose_hands_are_all_good_says_nothing_for_its_models():
    shard, deaths = play(5, set())
    assert deaths == 0 and shard.labelled == 5 and not shard.has_culprit


def grey_photos(folder: Path, greys: list[int]) -> Path:
    folder.mkdir()
    for k, grey in enumerate(greys):
        (folder / f"{k:02d}.png").write_bytes(encoded(np.full((8, 8, 3), grey, np.uint8), "PNG"))
    return folder


def test_hands_that_end_the_model_take_no_other_along(tmp_path, local_ray):
    greys = [100 + k for k in range(20)]
    for deadly in (3, 4, 15):  # two in the first shard, one in the second
        greys[deadly] = DEADLY
    labels = tmp_path / "labels"
    record = label_greys(grey_photos(tmp_path / "photos", greys), labels, 10)
    assert record.outcomes == {"ok": 17, "failed: crashed": 3}
    rows = pq.read_table(labels / "data").to_pylist()
    assert [row["image_id"] for row in rows] == [f"{k:02d}.png" for k in range(20)]
    for grey, row in zip(greys, rows, strict=True):
        if grey == DEADLY:
            assert (row["status"], row["reason"], row["joint_std_mm"]) == ("failed", "crashed", None)
            assert row["error"] == "each model that was given this hand ended without a word"
        else:
            assert (row["status"], row["reason"], row["joint_std_mm"]) == ("ok", None, grey)
    assert record.retries["process died"] >= 2 * SHARD_CRASHES + 3 * HAND_DEATHS


def test_a_shard_of_deadly_hands_alone_is_given_up_and_the_run_ends_well(tmp_path, local_ray):
    record = label_greys(grey_photos(tmp_path / "photos", [DEADLY] * 3), tmp_path / "labels", 10)
    assert record.outcomes == {"failed: crashed": 3}
