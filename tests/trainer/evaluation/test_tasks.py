"""Evaluation and calibration as Ray tasks give the files of one process, also if a task's process dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from annotator.errors import UserError
from annotator.model.checkpoint import load_checkpoint
from annotator.quality.calibration import Calibration
from annotator.runtime.ray_session import connected
from tests.commands.test_cli import run as command
from tests.support.example_files import write_stick_hands
from trainer.config import AugmentConfig
from trainer.data import examples as example_files
from trainer.data.fill_cache import fill_cache
from trainer.evaluation import measurements, parts
from trainer.evaluation.calibrate import calibrate
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.predictions import BATCH_SIZE, open_examples


@pytest.fixture(autouse=True)
def ray_here(local_ray):
    """Start Ray again if an earlier test of this process has ended it: 'auto' would find another process's."""
    with connected():
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """Compute with as many threads as a task: their number changes the last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sticks(tmp_path_factory) -> str:
    """150 stored examples in files of 64, with row groups of 32."""
    folder = str(tmp_path_factory.mktemp("sticks"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example_files, "FILE_ROWS", 64)
        write_stick_hands(folder, 150)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dying_once(shared, rows: range) -> parts.PartResult:
    """Die at the second part, the first time."""
    mark = Path(shared[1].places[0], "died")
    if rows.start and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return parts.measure_part(shared, rows)


@pytest.mark.slow
def test_any_number_of_workers_writes_the_files_of_one_process(sticks, lively_file, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "EXAMPLES_AT_ONCE", BATCH_SIZE)
    (tmp_path / "examples").symlink_to(sticks)
    monkeypatch.chdir(tmp_path)  # a relative path: tasks have another working folder
    done: dict[str, list[tuple[int, int]]] = {"here": [], "one": [], "two": []}
    for name, options in {
        "here": {},
        "one": {"workers": 1, "address": "auto"},
        "two": {"workers": 2},
    }.items():
        evaluate(
            lively_file,
            "examples",
            str(tmp_path / name),
            first=7,
            count=80,
            on_progress=lambda *progress, name=name: done[name].append(progress),
            **options,
        )
    here = contents(tmp_path / "here")
    assert len(here) > 5 and here == contents(tmp_path / "one") == contents(tmp_path / "two")
    assert done["here"] == done["one"] == done["two"] == [(32, 80), (64, 80), (80, 80)]


@pytest.mark.slow
def test_drawn_hands_are_measured_by_tasks(lively_file, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "EXAMPLES_AT_ONCE", BATCH_SIZE)
    here = calibrate(lively_file, "synth", str(tmp_path / "here.safetensors"), first=3, count=40)
    there = calibrate(lively_file, "synth", str(tmp_path / "there.safetensors"), first=3, count=40, workers=2)
    assert here == there != Calibration()


@pytest.mark.slow
def test_a_part_whose_process_dies_is_measured_again(sticks, lively_file, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "EXAMPLES_AT_ONCE", 2 * BATCH_SIZE)
    here = calibrate(lively_file, sticks, str(tmp_path / "here.safetensors"))
    monkeypatch.setattr(parts, "measure_part", dying_once)
    there = calibrate(lively_file, sticks, str(tmp_path / "there.safetensors"), workers=2)
    assert Path(sticks, "died").exists() and here == there != Calibration()
    written = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("here", "there")]
    assert written[0] == written[1]


@pytest.mark.slow
def test_a_cache_of_drawn_hands_is_measured_by_tasks(lively, lively_file, tmp_path):
    cache = str(tmp_path / "cache")
    crop_px = lively.checkpoint.info.network.crop_px
    fill_cache(cache, 34, crop_px, 7, lively.checkpoint.hand, AugmentConfig(colour=0))
    here = calibrate(lively_file, cache, str(tmp_path / "here.safetensors"), first=1)
    there = calibrate(lively_file, cache, str(tmp_path / "there.safetensors"), first=1, workers=2)
    assert here == there != Calibration()


def test_measurements_do_not_depend_on_the_split(sticks, lively_file, monkeypatch):
    """Thinned pairs of vertices included: a stream that is cut anywhere keeps the same rows."""
    monkeypatch.setattr(measurements, "_VERTEX_PHOTOS", 20)
    rows = np.random.default_rng(0).normal(size=(101, 4, 2, 3))
    whole, joined = measurements._EveryKth(20), measurements._EveryKth(20)
    whole.add(rows)
    for start, stop in ((0, 3), (3, 40), (40, 41), (41, 101)):
        joined.add(rows[start:stop])
    np.testing.assert_array_equal(whole.rows(()), joined.rows(()))
    assert len(whole.rows(())) == 13  # every eighth of 101
    opened = open_examples(load_checkpoint(lively_file), sticks, first=3, count=140)
    ids = [fact.image_id for _, facts in opened.in_order(16) for fact in facts]
    cut = [
        fact.image_id
        for part in (range(5), range(5, 70), range(70, 140))
        for _, facts in opened.in_order(16, part)
        for fact in facts
    ]
    assert len(set(ids)) == 140 and cut == ids


def test_mistakes_are_one_line_from_a_task_too(lively_file, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="there is no device 'cuda:77' here"):
        evaluate(lively_file, "synth", str(tmp_path / "out"), count=2, device="cuda:77", address="auto")
    code, printed, error = command(
        monkeypatch,
        capsys,
        *("evaluate", lively_file, tmp_path / "none", tmp_path / "o", "--address", "auto"),
    )
    assert code == 2 and error.count("\n") == 1 and not printed


@pytest.mark.slow
def test_the_command_line_shows_progress_of_tasks(lively_file, tmp_path, monkeypatch, capsys):
    code, printed, error = command(
        monkeypatch,
        capsys,
        *("evaluate", lively_file, "synth", tmp_path / "out", "--count", "4", "--workers", "2"),
    )
    assert code == 0 and printed.endswith(f"results in {tmp_path / 'out'}\n")
    assert "evaluating  4/4" in error
