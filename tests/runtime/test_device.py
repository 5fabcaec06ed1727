"""A device that is not here is a plain line, wherever a user may name one."""

from __future__ import annotations

import pytest
import torch

import annotator
from annotator.errors import UserError
from annotator.runtime.device import device_of

ABSENT = [
    "nonsense",
    "cuda:99",
    "cuda:x",
    "cpu:-1",
    "meta",
    "mps",
    "xpu",
    "xla",
    "hpu",
    "opengl",
    "two\nlines",
]


@pytest.mark.parametrize("name", [name for name in ABSENT if name != "mps" or not torch.mps.is_available()])
@pytest.mark.filterwarnings("ignore")
def test_a_device_that_is_not_here_is_refused_in_one_line(name: str) -> None:
    for use in (device_of, lambda device: annotator.load("untrained:default", device=device)):
        with pytest.raises(UserError) as refused:
            use(name)
        assert str(refused.value).startswith(f"there is no device {name!r} here: give one of cpu")
        assert "\n" not in str(refused.value)


def test_without_a_name_it_is_a_gpu_or_else_the_cpu() -> None:
    for name in (None, ""):
        assert device_of(name).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_of("cpu") == torch.device("cpu")
