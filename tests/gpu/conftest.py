from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if HERE in item.path.parents:  # pytest hands every collected test to every conftest
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
