"""The same for each of many files: in this process, or as tasks of Ray where that pays; answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from annotator.errors import UserError, first_line
from annotator.runtime.ray_session import check_seen_by_all, connected
from annotator.storage.files import is_local

#: Ray takes seconds to start: for so many bytes, or files of a store, it is worth it.
PAYS_BYTES, PAYS_STORE_FILES = 1 << 29, 64

#: Tasks under way for each core: enough that none waits, and answers of few files are held.
_AHEAD = 3

#: How often a task whose process or machine died is tried again.
_TRIES = 3

Answer = TypeVar("Answer")


def pays(folder: str, sizes: Sequence[int]) -> bool:
    """Whether files of a folder are so many that tasks of Ray are sooner done with them."""
    return sum(sizes) >= PAYS_BYTES or (not is_local(folder) and len(sizes) >= PAYS_STORE_FILES)


@contextmanager
def tasks(wanted: bool, places: Sequence[str], address: str | None = None) -> Iterator[None]:
    """A Ray for the time of the block, if tasks are wanted; raises as `connected` and `check_seen_by_all` do.

    Args:
        wanted: whether `in_order` is to use it. places: folders that all machines must see.
        address: as for `annotator.runtime.ray_session.connected`.
    """
    if not wanted:
        yield
        return
    with connected(address):
        check_seen_by_all(places)
        yield


def in_order(
    do: Callable[..., Answer],
    shared: Any,
    items: Sequence[tuple[Any, ...]],
    as_tasks: bool,
    workers: int | None = None,
) -> Iterator[Answer]:
    """`do(shared, *item)` of each item, which must bear to be repeated.

    Args:
        do: a function of a module. shared: what all calls have in common.
        items: arguments of each call.
        as_tasks: within `tasks`, else one after the other in this process.
        workers: tasks at once; default one a core.

    Raises:
        UserError: whatever `do` raises of it, or processes that die.
    """
    if as_tasks:
        yield from _as_tasks(do, shared, items, workers)
    else:
        for item in items:
            yield do(shared, *item)


def _as_tasks(
    do: Callable[..., Answer], shared: Any, items: Sequence[tuple[Any, ...]], workers: int | None
) -> Iterator[Answer]:
    import ray

    task: Any = ray.remote(num_cpus=1, max_retries=_TRIES, scheduling_strategy="SPREAD")(do)
    most = workers or _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    common, rest, under_way = ray.put(shared), iter(items), deque[Any]()
    try:
        while True:
            under_way += [task.remote(common, *item) for item in islice(rest, most - len(under_way))]
            if not under_way:
                return
            yield ray.get(under_way.popleft())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        first = first_line(error)
        raise UserError(
            f"a process died {_TRIES + 1} times over one file ({first}): if it was for want of memory, give fewer "
            "--workers; the same command goes on where it was"
        ) from None
    finally:
        for ref in under_way:
            ray.cancel(ref)
