"""Drawing as Ray tasks: the same files as in one process, also if a task's process dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pytest

from trainer.synth import write, write_photos
from trainer.synth.write import BLOCK, PhotosPlan
from trainer.synth.write_sequences import write_sequences


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dying_once(plan: PhotosPlan, numbers: range) -> pa.Table:
    """Die after the photos are written, the first time."""
    table = write.write_part(plan, numbers)
    mark = Path(plan.out).with_name("died")
    if numbers.start and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return table


@pytest.mark.slow
def test_tasks_write_the_same_files_as_one_process(local_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "PHOTOS_AT_ONCE", BLOCK)
    done: list[tuple[int, int]] = []
    count = 2 * BLOCK + 3
    write_photos(tmp_path / "one", count, 3, 64, workers=1)
    monkeypatch.setattr(write, "write_part", dying_once)
    write_photos(
        tmp_path / "tasks", count, 3, 64, workers=2, on_progress=lambda *progress: done.append(progress)
    )
    assert (tmp_path / "died").exists()
    assert contents(tmp_path / "one") == contents(tmp_path / "tasks")
    assert done == [(BLOCK, count), (2 * BLOCK, count), (count, count)]


@pytest.mark.slow
def test_sequences_as_tasks_are_the_same_files(local_ray, tmp_path):
    write_sequences(tmp_path / "one", 2, 5, 2, 64)
    write_sequences(tmp_path / "tasks", 2, 5, 2, 64, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "tasks")


@pytest.mark.slow
def test_sigterm_while_tasks_draw_has_its_own_exit_code(tmp_path):
    """Ray turns the signal into an interrupt like that of Ctrl-C, whose code is 130."""
    out = tmp_path / "hands"
    with tempfile.TemporaryFile("w+") as stderr:  # a pipe stays open as long as Ray's processes
        driver = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "cli",
                "synth",
                str(out),
                "--count",
                "100000",
                "--size-px",
                "64",
                "--workers",
                "2",
            ],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        while not any(out.rglob("*.jpg")) and not any(out.rglob("*.png")):
            assert driver.poll() is None
            time.sleep(0.05)
        driver.send_signal(signal.SIGTERM)
        code = driver.wait()
        stderr.seek(0)
        assert stderr.read().splitlines()[-1] == "amvur: stopped; run the same command again to resume"
    assert code == 143


@pytest.mark.slow
def test_an_interrupted_run_repeats_to_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "PHOTOS_AT_ONCE", BLOCK)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_photos(tmp_path / "cut", 2 * BLOCK, 3, 64, on_progress=stop)
    write_photos(tmp_path / "cut", 2 * BLOCK, 3, 64)
    write_photos(tmp_path / "whole", 2 * BLOCK, 3, 64)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
