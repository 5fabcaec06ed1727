"""Progress lines in a log."""

from __future__ import annotations

import pytest

from annotator.job.run import Progress
from annotator.runtime import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_hears_now_and_then_of_rate_causes_and_time_left(clock, capsys):
    with progress.photos_bar("labelling", "a label") as report:
        for second in range(0, 101, 5):
            clock[0] = float(second)
            outcomes = {"ok": 8 * second, "unreadable: missing": second, "failed: crashed": second // 10}
            listed = second > 40
            report(
                Progress(
                    10 * second, 1000 if listed else 10 * second, listed, outcomes, 10.0, 0.0, second // 50
                )
            )
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "labelling  0/0+  10 photos/s  0 without a label, 0 missing, 0 crashed, still listing"
    assert (
        lines[1]
        == "labelling  300/300+  10 photos/s  33 without a label, 30 missing, 3 crashed, still listing"
    )
    assert lines[2] == (
        "labelling  600/1000  10 photos/s  40 s left  66 without a label, 60 missing, 6 crashed, 1 retried"
    )
    assert lines[-1].startswith("labelling  1000/1000  10 photos/s  110 without a label") and len(lines) == 5


def test_training_counts_steps_and_not_photos(clock, capsys):
    with progress.training_bar() as report:
        for step in (10, 20, 40):
            clock[0] = 6.0 * step
            report(_Step(step, 100))
    lines = capsys.readouterr().err.splitlines()
    # Six seconds per step, independent of photos/s.
    assert "  8.0 minutes left  " in lines[1] and "  6.0 minutes left  " in lines[2]


class _Step:
    photos_per_s, waiting, losses = 1000.0, 0.0, {"vertices": 1.0}

    def __init__(self, step: int, steps: int) -> None:
        self.step, self.steps = step, steps


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "1 s"),
        (119, "119 s"),
        (120, "2.0 minutes"),
        (7199, "120.0 minutes"),
        (90_000, "25.0 hours"),
        (2e6, "23.1 days"),
    ],
)
def test_time_left_is_rough(seconds, shown):
    assert progress.time_left(seconds) == shown
