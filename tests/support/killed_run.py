"""A command of its own process, killed as soon as its first shard is there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.conftest import at_work


def kill_after_first_shard(call: str, labels: Path) -> dict[str, int]:
    """Run a Python expression in its own process and kill the process with SIGKILL after its first label file.

    Args:
        call: such as `annotator.fit('found', 'labels', compute=annotator.ComputeOptions(workers=1))`.
        labels: the label set that it writes.

    Returns:
        The time of last change, ns, of each label file by name. No process of Ray is left that writes.
    """
    command = [sys.executable, "-c", f"import annotator; {call}"]
    driver = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    while not list(labels.glob("data/*.parquet")):
        assert driver.poll() is None
        time.sleep(0.01)
    children = [one for one in psutil.Process(driver.pid).children(recursive=True) if at_work(one)]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert children and not psutil.wait_procs(children, timeout=60)[1]
    return changed_ns(labels)


def changed_ns(labels: Path) -> dict[str, int]:
    """Return the time of last change, ns, of each label file by name."""
    return {path.name: path.stat().st_mtime_ns for path in (labels / "data").iterdir()}
