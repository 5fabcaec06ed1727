"""Check that every file that breaks readers of photos gets its one right row.

    python -m tests.robustness.run_corpus [--keep FOLDER]

The script makes the files of `tests/robustness/hostile/`, from a real photo if ../shared/data exists beside the
checkout. It labels them with the real job, and compares all rows, read by DuckDB, with the outcome that follows from
how each file was made. The exit code is 1 if a row is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from annotator.runtime.ray_session import connected
from tests.robustness.corpus import labelled, table
from tests.robustness.hostile import build

#: Time limit; a hang fails the run.
LIMIT_S = 420


class PeakMemory(threading.Thread):
    """Watch the largest memory of any process below this one."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.done = 0, threading.Event()

    def run(self) -> None:
        """Sample twice per second."""
        while not self.done.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                except OSError:
                    continue
                peak = next(
                    (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0"
                )
                self.bytes = max(self.bytes, int(peak) * 1024)


def main() -> None:
    """Print the table, time and memory; the exit code is 1 if a row is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", metavar="FOLDER", help="keep the files and their labels here")
    args = parser.parse_args()
    folder = Path(args.keep) if args.keep else Path(tempfile.mkdtemp(prefix="amvur-corpus-"))
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT_S)
    started = time.monotonic()
    try:
        runs = build(folder / "corpus")
        made_s = time.monotonic() - started
        memory, wrong = PeakMemory(), []
        memory.start()
        with connected():
            for number, run in enumerate(runs):
                wrong += labelled(run, folder / "labels" / str(number))
        memory.done.set()
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(table(runs, wrong))
    total = sum(max(1, len(run.expected)) for run in runs)
    print(
        f"{total - len(wrong)} of {total} right in {time.monotonic() - started:.0f} s, {made_s:.0f} s of them to make "
        f"the files; largest process {memory.bytes / 2**30:.2f} GiB"
    )
    sys.exit(bool(wrong))


def _too_long(*_: object) -> None:
    sys.exit(f"not finished after {LIMIT_S} s: a process hangs")


if __name__ == "__main__":
    main()
