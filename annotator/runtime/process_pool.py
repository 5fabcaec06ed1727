"""Processes for parallel work on one machine, which end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def process_pool(
    processes: int, prepare: Callable[..., None] | None = None, *arguments: Any
) -> ProcessPoolExecutor:
    """Return a pool of new processes, which first call `prepare(*arguments)` and end with the calling process.

    After a kill of that one, a plain pool's processes would finish their work and then wait forever.
    """
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, spawn, _begin, (prepare, arguments))


def _begin(prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*arguments)


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
