"""List shards in a thread, so that work starts before a slow source has been listed to its end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress

from annotator.job.manifest import PlannedShard


class ListingThread:
    """A bounded queue of planned shards, filled by a thread."""

    def __init__(self, planned: Iterator[PlannedShard], ahead: int) -> None:
        """Start listing, at most `ahead` shards in advance (four at least)."""
        self._queue: queue.Queue[PlannedShard | Exception | None] = queue.Queue(max(4, ahead))
        self.ended = False
        self._stopped = threading.Event()
        threading.Thread(target=self._list, args=(planned,), daemon=True).start()

    def stop(self) -> None:
        """Stop listing."""
        self._stopped.set()

    def _list(self, planned: Iterator[PlannedShard]) -> None:
        try:
            for shard in planned:
                if not self._put(shard):
                    return
            self._put(None)
        except Exception as error:
            self._put(error)

    def _put(self, item: PlannedShard | Exception | None) -> bool:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=0.5)
                return True
        return False

    def next(self) -> PlannedShard | None:
        """Return the next shard, or None if none is listed yet or `ended`; raise the error of the listing."""
        try:
            item = None if self.ended else self._queue.get_nowait()
        except queue.Empty:
            return None
        if isinstance(item, Exception):
            raise item
        self.ended = item is None
        return item
