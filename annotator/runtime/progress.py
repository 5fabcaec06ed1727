"""Progress bars of long work, or a line every 30 seconds in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Interval of progress lines in a log.
LOG_EVERY_S = 30.0


class _Bar:
    """A progress bar that appears with the first update, so that a mistake prints one line alone."""

    def __init__(self, title: str, total: int | None = None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        columns: tuple[Any, ...] = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[details]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task(title, total=total, rate="starting", details="")
        self._title, self._logged_s = title, -LOG_EVERY_S
        self._first: tuple[float, int] | None = None  # time of the first update, and the work done by then

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def show(
        self, done: int, total: int, rate: float | None = None, details: str = "", is_all: bool = True
    ) -> None:
        """Update the bar; `rate` is in photos/s, `is_all` is whether `total` is final."""
        text = "" if rate is None else f"{rate:.0f} photos/s" if rate else "starting"
        if self._bar.console.is_terminal:
            self._bar.start()
            of = total if is_all else None
            self._bar.update(self._task, completed=done, total=of, rate=text, details=details)
            return
        # Not a terminal, such as a submission's log.
        now = time.monotonic()
        self._first = self._first or (now, done)
        if (is_all and done == total) or now - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now
            since_s, before = now - self._first[0], self._first[1]
            remaining = (
                f"{time_left((total - done) * since_s / (done - before))} left"
                if before < done < total
                else ""
            )
            parts = (self._title, f"{done}/{total}" + "+" * (not is_all), text, remaining, details)
            self._bar.console.print("  ".join(filter(None, parts)), soft_wrap=True, highlight=False)


@contextmanager
def photos_bar(title: str, missing: str) -> Iterator[Callable[[Any], None]]:
    """Yield a callback for the progress of a job; photos that are not ok are shown as without `missing`."""
    with _Bar(title) as bar:

        def report(progress: Any) -> None:
            details = _causes(progress.outcomes, missing)
            if progress.retries:
                details.append(f"{progress.retries} retried")
            if not progress.listed:
                details.append("still listing")
            bar.show(progress.photos, progress.total, progress.rate, ", ".join(details), progress.listed)

        yield report


def _causes(outcomes: dict[str, int], missing: str) -> list[str]:
    """Return the number of photos that are not ok, and the two most frequent reasons."""
    wrong = {name: count for name, count in outcomes.items() if name != "ok"}
    if not wrong:
        return []
    frequent = sorted(wrong, key=lambda name: -wrong[name])[:2]
    return [
        f"{sum(wrong.values())} without {missing}",
        *(f"{wrong[name]} {name.rpartition(': ')[2]}" for name in frequent),
    ]


@contextmanager
def training_bar() -> Iterator[Callable[[Any], None]]:
    """Yield a callback for the progress of a training: steps, photos/s and losses."""
    with _Bar("training") as bar:

        def report(progress: Any) -> None:
            names = [name for name in ("vertices", "joints3d", "joints2d") if progress.losses.get(name)]
            losses = "  ".join(f"{name} {progress.losses[name]:.2f}" for name in names)
            bar.show(
                progress.step,
                progress.steps,
                progress.photos_per_s,
                f"{losses}  waiting {progress.waiting:.0%}",
            )

        yield report


@contextmanager
def counting_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total)."""
    with _Bar(title) as bar:
        yield bar.show


def time_left(seconds: float) -> str:
    """Format a duration for people, with about two digits."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(seconds, 1):.0f} s"
