"""Apply a function to many files or parts, in this process or as Ray tasks; results are in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from annotator.errors import UserError, first_line
from annotator.runtime.ray_session import check_shared, connected
from annotator.storage.files import is_local

#: Minimum bytes, or files of a store, for which the seconds of Ray's start are worth it.
MIN_BYTES, MIN_STORE_FILES = 1 << 29, 64

#: Tasks submitted per core: enough to keep cores busy, few enough to hold few results.
_AHEAD = 3

#: Retries of a task whose process or machine died.
_RETRIES = 3

Result = TypeVar("Result")


def tasks_are_faster(folder: str, sizes: Sequence[int]) -> bool:
    """Return whether Ray tasks are faster for files of these sizes, bytes, including the start of Ray."""
    return sum(sizes) >= MIN_BYTES or (not is_local(folder) and len(sizes) >= MIN_STORE_FILES)


@contextmanager
def ray_for_tasks(as_tasks: bool, places: Sequence[str], address: str | None = None) -> Iterator[None]:
    """Connect to Ray within the block if work is done as tasks; raises as `connected` and `check_shared` do.

    Args:
        as_tasks: as for `in_order`. places: folders that all machines must see.
        address: as for `annotator.runtime.ray_session.connected`.
    """
    if not as_tasks:
        yield
        return
    with connected(address):
        check_shared(places)
        yield


def in_order(
    do: Callable[..., Result],
    shared: Any,
    items: Iterable[tuple[Any, ...]],
    as_tasks: bool,
    workers: int | None = None,
    gpus: int = 0,
) -> Iterator[Result]:
    """Yield `do(shared, *item)` per item; a call may be repeated.

    Args:
        do: a function of a module. shared: the argument common to all calls.
        items: further arguments per call, taken a few calls ahead.
        as_tasks: as Ray tasks, within `ray_for_tasks`; otherwise in this process.
        workers: maximum of tasks at once; default `_AHEAD` per core.
        gpus: GPUs per task, on a cluster that has them.

    Raises:
        UserError: `do` raised it, or processes died too often.
    """
    if as_tasks:
        yield from _as_tasks(do, shared, items, workers, gpus)
    else:
        for item in items:
            yield do(shared, *item)


def _as_tasks(
    do: Callable[..., Result], shared: Any, items: Iterable[tuple[Any, ...]], workers: int | None, gpus: int
) -> Iterator[Result]:
    import ray

    present = ray.cluster_resources()
    gpus = gpus if present.get("GPU", 0) >= gpus else 0
    task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES, scheduling_strategy="SPREAD")(do)
    max_submitted = workers or _AHEAD * max(1, int(present.get("CPU", 1)))
    common, rest, submitted = ray.put(shared), iter(items), deque[Any]()
    try:
        while True:
            submitted += [task.remote(common, *item) for item in islice(rest, max_submitted - len(submitted))]
            if not submitted:
                return
            yield ray.get(submitted.popleft())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        first = first_line(error)
        raise UserError(
            f"processes died {_RETRIES + 1} times on one part of the work ({first}): if memory ran out, "
            "lower --workers; run the same command again to resume"
        ) from None
    finally:
        for ref in submitted:
            ray.cancel(ref)
