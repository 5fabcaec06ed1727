"""Measure waiting times: --help, import, 30 photos from start to exit, and a finished run started again.

python benchmarks/startup.py [PHOTOS]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, photo_folder, print_figures

from annotator.sources import FolderSource

ROOT = Path(__file__).parents[1]


def seconds(*command: str) -> float:
    """Return the wall time of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def median(runs: int, *command: str) -> float:
    """Return the median wall time after one warm-up."""
    seconds(*command)
    return statistics.median(seconds(*command) for _ in range(runs))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?", help="folder of photos; default: synthetic ones")
    args = parser.parse_args()
    print(machine())
    photos = photo_folder(args.photos, 30)
    scratch = Path(tempfile.mkdtemp(prefix="amvur-bench-"))
    thirty = scratch / "photos"
    thirty.mkdir()
    for entry, _ in zip(FolderSource(str(photos)), range(30), strict=False):
        shutil.copy(entry.path, thirty / entry.id.replace("/", "-"))
    amvur = (sys.executable, "-m", "cli")
    figures = {
        "amvur --help, s": median(5, *amvur, "--help"),
        "import annotator, s": median(5, sys.executable, "-c", "import annotator"),
    }
    cold = [seconds(*amvur, "annotate", str(thirty), str(scratch / f"labels-{k}")) for k in range(4)][1:]
    figures["annotate, 30 photos, to exit, s"] = statistics.median(cold)
    resumed_s = median(3, *amvur, "annotate", str(thirty), str(scratch / "labels-1"))
    figures["annotate, nothing left to do, s"] = resumed_s
    shutil.rmtree(scratch)
    print_figures(figures, annotate_s=cold)


if __name__ == "__main__":
    main()
