"""Work in a process of a cluster gives the numbers of this process, also if the process dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from annotator import UserError
from annotator.runtime.on_worker import on_worker
from annotator.runtime.ray_session import connected
from tests.commands.test_cli import run
from trainer.evaluation.evaluate import evaluate


@pytest.fixture(autouse=True)
def ray_here(local_ray):
    """Start Ray again if an earlier test of this process has ended it: 'auto' would find another process's."""
    with connected():
        yield


def dying_once(mark: str, **arguments: Any) -> Any:
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(**arguments)


def approximately(value: Any) -> Any:
    """Return figures to compare with: the number of threads changes the last digits."""
    if isinstance(value, dict):
        return {name: approximately(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(approximately(item) for item in value)
    return pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True) if isinstance(value, float) else value


def test_an_evaluation_on_a_worker_gives_the_same_figures(lively_file, local_ray, tmp_path):
    asked: dict[str, Any] = {"checkpoint": lively_file, "examples": "synth", "count": 20}
    here = evaluate(out=str(tmp_path / "here"), **asked)
    there = on_worker(
        dying_once, "auto", [], mark=str(tmp_path / "died"), out=str(tmp_path / "there"), **asked
    )
    assert (tmp_path / "died").exists()
    assert there == approximately(here) and there
    written = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("here", "there")]
    assert written[0] == written[1]


def test_mistakes_are_one_line_from_a_worker_too(local_ray, lively_file, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="there is no device 'cuda:77' here"):
        on_worker(
            evaluate,
            "auto",
            [],
            checkpoint=lively_file,
            examples="synth",
            out=str(tmp_path),
            device="cuda:77",
        )
    code, printed, error = run(
        monkeypatch,
        capsys,
        *("evaluate", lively_file, tmp_path / "none", tmp_path / "o", "--address", "auto"),
    )
    assert code == 2 and error.count("\n") == 1 and not printed
