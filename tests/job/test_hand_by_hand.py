"""Labelling hand by hand: the bookkeeping alone, and real processes that crash on real photos."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from annotator.job.failures import SHARD_CRASHES
from annotator.job.hand_by_hand import FIRST_DEATHS, HAND_DEATHS, HandByHand
from tests.robustness.hostile_photos import encoded
from tests.support.dying_model import DEADLY, label_greys

pytestmark = pytest.mark.slow


def play(count: int, deadly: set[int]) -> tuple[HandByHand, int]:
    """Label hands in the order of the dispatcher; return the shard and the number of dead models."""
    shard = HandByHand.of(None, None, count)
    queue, deaths = deque(shard.shuffled()), 0
    while queue:
        hand = queue.popleft()
        if hand.number not in deadly:
            shard.ended(hand, "labelled", is_labelled=True)
            continue
        shard.died(hand)
        deaths += 1
        if shard.model_is_suspect:
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
    assert shard.labelled == count - len(deadly) and shard.clears_models
    assert deaths == HAND_DEATHS * len(deadly)


def test_a_shard_without_a_good_hand_is_given_up_soon():
    for count in (1, 2, 3, 1000):
        shard, deaths = play(count, set(range(count)))
        assert shard.model_is_suspect and not shard.clears_models
        assert deaths == min(FIRST_DEATHS, HAND_DEATHS * count)


def test_a_shard_without_a_crash_does_not_clear_its_models():
    shard, deaths = play(5, set())
    assert deaths == 0 and shard.labelled == 5 and not shard.clears_models


def grey_photos(folder: Path, greys: list[int]) -> Path:
    folder.mkdir()
    for k, grey in enumerate(greys):
        (folder / f"{k:02d}.png").write_bytes(encoded(np.full((8, 8, 3), grey, np.uint8), "PNG"))
    return folder


def test_hands_that_crash_the_model_cost_no_other_hand(tmp_path, local_ray):
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
            assert row["error"] == "every model that tried to label this hand crashed"
        else:
            assert (row["status"], row["reason"], row["joint_std_mm"]) == ("ok", None, grey)
    assert record.retries["process died"] >= 2 * SHARD_CRASHES + 3 * HAND_DEATHS


def test_a_shard_of_deadly_hands_alone_is_given_up_and_the_run_completes(tmp_path, local_ray):
    record = label_greys(grey_photos(tmp_path / "photos", [DEADLY] * 3), tmp_path / "labels", 10)
    assert record.outcomes == {"failed: crashed": 3}
