"""What a process makes once is kept per key."""

from __future__ import annotations

import pickle

from annotator.runtime.per_process import once_per_process


@once_per_process(key=lambda name, size: (name, size))
def made(name: str, size: int) -> list[int]:
    """Make a list that shows whether it is a new one."""
    return [0] * size


def test_equal_keys_share_a_value_and_others_have_their_own():
    first = made("a", 2)
    first.append(1)
    assert made("a", size=2) is first == [0, 0, 1]
    assert made("a", 3) == [0, 0, 0] and made("b", 2) == [0, 0]


def test_tasks_get_the_function_by_its_name():
    assert pickle.loads(pickle.dumps(made)) is made
