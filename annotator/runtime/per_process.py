"""Networks and solvers that a process makes once and keeps for its later tasks."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def once_per_process(
    key: Callable[..., Hashable],
) -> Callable[[Callable[Arguments, Value]], Callable[Arguments, Value]]:
    """Return a decorator: the first call for each key makes a value, and later calls of the process return it.

    `key` takes the function's arguments. It identifies them by content, since each task gets new copies of them.
    """

    def decorated(make: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
        made: dict[Hashable, Value] = {}

        @wraps(make)
        def of_process(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
            wanted = key(*args, **kwargs)
            if wanted not in made:
                made[wanted] = make(*args, **kwargs)
            return made[wanted]

        return of_process

    return decorated
