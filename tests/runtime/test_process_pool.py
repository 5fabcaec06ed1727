"""Processes of a pool end with the process that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from annotator.runtime.process_pool import process_pool

#: Runs in a process of its own, which a test kills.
_STARTS_TWO = """
import sys
from pathlib import Path
from tests.runtime.test_process_pool import work
from annotator.runtime.process_pool import process_pool
if __name__ == "__main__":
    with process_pool(2) as pool:
        list(pool.map(work, [Path(sys.argv[1]) / name for name in "abcd"]))
"""


def work(file: Path) -> None:
    """Write this process's id to a file, and work for minutes."""
    file.write_text(str(os.getpid()))
    time.sleep(300)


def test_processes_end_after_a_kill_of_the_one_that_started_them(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(_STARTS_TWO)
    (tmp_path / "ids").mkdir()
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path / "ids"], env={**os.environ, "PYTHONPATH": str(root)}
    )
    try:
        until = time.monotonic() + 120
        while len(texts := [file.read_text() for file in (tmp_path / "ids").iterdir()]) < 2 or not all(texts):
            assert parent.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        processes = [psutil.Process(int(text)) for text in texts]
    finally:
        parent.kill()
        parent.wait()
    _, left = psutil.wait_procs(processes, 60)
    for one in left:
        one.kill()
    assert not left


def _set(value: str) -> None:
    os.environ["AMVUR_POOL_TEST"] = value


def test_each_process_is_prepared_first():
    with process_pool(1, _set, "ready") as pool:
        assert pool.submit(os.getenv, "AMVUR_POOL_TEST").result(120) == "ready"
