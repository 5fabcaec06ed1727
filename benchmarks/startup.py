"""Measure waiting times: --help, import, the first label of 30 photos and the end of their run, a finished run again.

    python benchmarks/startup.py [PHOTOS]

The processor time of the first label covers all processes. On a busy machine it varies less than the wall time; an
`import torch`, measured in between, is the unit for both.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from common import machine, photo_folder, print_figures

from annotator.sources import FolderSource

ROOT = Path(__file__).parents[1]

#: Seconds between looks at the processes of a run.
LOOK_S = 0.05


class Cost(NamedTuple):
    """Wall and processor time of a command and all its descendants, seconds."""

    wall_s: float
    cpu_s: float


def costs(command: tuple[str, ...], labels: Path | None = None) -> tuple[Cost, Cost]:
    """Run a command that must succeed; return its cost until the first file in `labels`, and until its end."""
    began, cpu_s, first = time.perf_counter(), dict[int, float](), None
    process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        ended = process.poll() is not None
        with suppress(psutil.Error):
            for each in [process, *process.children(recursive=True)]:
                with suppress(psutil.Error):
                    times = each.cpu_times()
                    cpu_s[each.pid] = times.user + times.system
        cost = Cost(time.perf_counter() - began, sum(cpu_s.values()))
        if first is None and labels and any(labels.glob("data/*.parquet")):
            first = cost
        if ended:
            break
        time.sleep(LOOK_S)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return first or cost, cost


def seconds(*command: str) -> float:
    """Return the median wall time after one warm-up."""
    costs(command)
    return statistics.median(costs(command)[1].wall_s for _ in range(3))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?", help="folder of photos; default: synthetic ones")
    parser.add_argument("--rounds", type=int, default=3, help="runs from start to exit")
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
        "amvur --help, s": seconds(*amvur, "--help"),
        "import annotator, s": seconds(sys.executable, "-c", "import annotator"),
    }
    firsts, ends, units = [], [], []
    for number in range(args.rounds + 1):
        labels = scratch / f"labels-{number}"
        first, end = costs((*amvur, "annotate", str(thirty), str(labels)), labels)
        firsts.append(first)
        ends.append(end)
        units.append(costs((sys.executable, "-c", "import torch"))[1])

    def median(costs: list[Cost], field: str) -> float:
        return statistics.median(getattr(cost, field) for cost in costs[1:])

    figures |= {
        "annotate, 30 photos, to the first label, s": median(firsts, "wall_s"),
        "the same, processor s": median(firsts, "cpu_s"),
        "the same, over import torch": median(firsts, "wall_s") / median(units, "wall_s"),
        "the same, processor time over that of import torch": median(firsts, "cpu_s")
        / median(units, "cpu_s"),
        "annotate, 30 photos, to exit, s": median(ends, "wall_s"),
        "annotate, nothing left to do, s": seconds(
            *amvur, "annotate", str(thirty), str(scratch / "labels-1")
        ),
    }
    shutil.rmtree(scratch)
    print_figures(figures, first=firsts, end=ends, unit=units)


if __name__ == "__main__":
    main()
