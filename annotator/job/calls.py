"""Ray calls that have not ended, each with the function that handles its end, and retries that are due later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from annotator.job.tally import ShardReport

#: Handles the end of a call, given its reference: takes its result or error, and returns a report of a written shard.
HandleEnd = Callable[[Any], ShardReport | None]


class Calls:
    """The calls of a run that have not ended."""

    def __init__(self) -> None:
        import ray

        self._ray = ray
        self._handlers: dict[Any, HandleEnd] = {}
        self._later: list[tuple[float, Callable[[], Any]]] = []

    def add(self, ref: Any, handle_end: HandleEnd) -> None:
        """Add a call by the reference to one of its results."""
        self._handlers[ref] = handle_end

    def retry_later(self, pause_s: float, retry: Callable[[], Any]) -> None:
        """Schedule a function, to be called by `start_due`."""
        self._later.append((time.monotonic() + pause_s, retry))

    def start_due(self) -> None:
        """Call the scheduled functions whose pause is over."""
        now = time.monotonic()
        for due in [due for due in self._later if due[0] <= now]:
            self._later.remove(due)
            due[1]()

    def handle_ended(self) -> Iterator[ShardReport]:
        """Wait a moment for calls to end, and handle the end of each; yield the reports of written shards."""
        if not self._handlers:
            time.sleep(0.02)
            return
        ready, rest = self._ray.wait(list(self._handlers), timeout=0.2, fetch_local=False)
        if rest:
            ready += self._ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        for ref in ready:
            report = self._handlers.pop(ref)(ref)
            if report is not None:
                yield report

    def cancel(self) -> None:
        """Cancel all calls."""
        for ref in self._handlers:
            self._ray.cancel(ref)
