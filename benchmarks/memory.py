"""Peak memory of the whole process tree of `amvur annotate`, and whether it grows with the collection.

    python benchmarks/memory.py [PHOTOS] [--copies 10] [--workers 2 --threads 1]

Proportional set size (PSS) is summed over driver, Ray's own processes and all workers five times a second, so that
memory shared between them counts once. The second run labels as many links to the same photos.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from machine import machine, photo_folder

from annotator.io.sources import FolderSource


def tree_pss(root: psutil.Process) -> int:
    """Bytes of a process and all below it."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(
            (int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0
        )
    return total


def peak(photos: Path, labels: Path, options: list[str]) -> tuple[int, float, int]:
    """Peak bytes, the mean over the second half of the run, and seconds."""
    command = [sys.executable, "-m", "cli", "annotate", str(photos), str(labels), *options]
    driver = psutil.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    started, samples = time.monotonic(), []
    while driver.poll() is None:
        samples.append(tree_pss(driver))
        time.sleep(0.2)
    if driver.returncode:
        sys.exit(f"annotate failed with exit code {driver.returncode}")
    late = samples[len(samples) // 2 :]
    return max(samples), sum(late) / len(late), round(time.monotonic() - started)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?", help="a folder of photos; default 512 synthetic ones")
    parser.add_argument("--copies", type=int, default=10, help="links to each photo in the second run")
    parser.add_argument("--workers", help="of `amvur annotate`; default its own")
    parser.add_argument("--threads", help="likewise")
    args = parser.parse_args()
    print(machine())
    photos = photo_folder(args.photos, 512)
    scratch = Path(tempfile.mkdtemp(prefix="amvur-bench-"))
    entries = list(FolderSource(str(photos)))
    options = [
        word
        for name in ("workers", "threads")
        if (value := getattr(args, name))
        for word in (f"--{name}", value)
    ]
    peaks = []
    for copies in (1, max(2, args.copies)):
        folder = scratch / f"photos-{copies}"
        for copy in range(copies):
            (folder / str(copy)).mkdir(parents=True)
            for entry in entries:
                (folder / str(copy) / entry.id.replace("/", "-")).symlink_to(entry.path)
        high, late, took = peak(folder, scratch / f"labels-{copies}", options)
        peaks.append(high)
        photo_count, gib = copies * len(entries), 2**30
        print(
            f"{photo_count:7d} photos: peak {high / gib:.2f} GiB, later half {late / gib:.2f} GiB, {took} s"
        )
    print(f"ratio of the peaks {peaks[1] / peaks[0]:.2f}")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
