"""Check that every file that breaks readers of photos gets its one right row.

    python benchmarks/corpus.py [--keep FOLDER]

The script makes the files of `hostile`, from a real photo if ../shared/data exists beside the checkout. It labels them
with the real job, and compares all rows, read by DuckDB, with the outcome that follows from how each file was made. The
exit code is 1 if a row is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import duckdb
import psutil
from hostile import Expected, Run, build
from machine import machine, print_figures

import annotator
from annotator.job.options import ComputeOptions
from annotator.runtime.ray_session import connected

#: Time limit; a hang fails the benchmark.
LIMIT_S = 420


#: Maximum wrong rows to print per kind.
SHOWN = 40


class Wrong(NamedTuple):
    """An input with a wrong row."""

    kind: str
    name: str
    why: str


class Row(NamedTuple):
    """The compared fields of a row."""

    status: str
    reason: str | None
    error: str | None
    size: tuple[int | None, int | None]
    duplicate: bool
    mesh: bool  # exists, is complete and finite
    no_mesh: bool


_FINITE = "isfinite(list_sum({}))"  # one infinite or NaN value makes the sum so
_MESH = " and ".join(
    [
        "len(vertices_mm) > 500",
        *(
            _FINITE.format(f"flatten({name})")
            for name in ("vertices_mm", "vertices_std_mm", "joints3d_mm", "joints2d_px")
        ),
        *(_FINITE.format(name) for name in ("pose", "betas", "camera.cam_t_mm", "crop_xyxy")),
        *(
            f"isfinite({name})"
            for name in ("camera.scale", "camera.focal_px", "visible_fraction", "joint_std_mm")
        ),
    ]
)


def rows_of(labels: Path) -> dict[str, list[Row]]:
    """Read all rows by image_id, with DuckDB."""
    found = duckdb.execute(
        f"select image_id, status, reason, error, width, height, duplicate, coalesce({_MESH}, false), "
        f"vertices_mm is null from '{labels}/data/*.parquet' where hand_index <= 0"
    ).fetchall()
    rows = defaultdict(list)
    for image_id, status, reason, error, width, height, duplicate, mesh, no_mesh in found:
        rows[image_id].append(Row(status, reason, error, (width, height), duplicate, mesh, no_mesh))
    return rows


def fault_of(rows: list[Row], expected: Expected) -> str:
    """Describe the fault of an input's rows; empty if they are right."""
    if not rows and expected.optional:
        return ""
    if len(rows) != expected.times:
        return f"{len(rows)} rows"
    if sum(row.duplicate for row in rows) != expected.times - 1 + expected.duplicate:
        return f"duplicate is {[row.duplicate for row in rows]}"
    return next(filter(None, (_fault_of_row(row, expected) for row in rows)), "")


def _fault_of_row(row: Row, expected: Expected) -> str:
    outcome = "ok" if row.status == "ok" else str(row.reason)
    wanted = "/".join(sorted(expected.outcomes))
    if outcome not in expected.outcomes:
        return f"{outcome} ({row.error}), expected {wanted}"
    if outcome == "ok":
        if row.reason is not None or row.error is not None:
            return f"ok, but {row.reason}: {row.error}"
        if not row.mesh:
            return "ok without a finite mesh"
        return f"{row.size} pixels" if expected.size and row.size != expected.size else ""
    if row.status != "unreadable" or not row.no_mesh:
        return f"status {row.status} for {outcome}"
    line = row.error or ""
    return "" if 0 < len(line) <= 300 and line.isprintable() else f"the error is {line!r}"


def labelled(run: Run, labels: Path, compute: ComputeOptions = ComputeOptions()) -> list[Wrong]:
    """Label a source and return its wrong rows."""
    try:
        annotator.annotate(str(run.source), str(labels), compute=compute)
    except annotator.UserError as error:
        message = str(error)
        if run.expected:
            return _all_wrong(run, f"refused: {message}")
        fine = message and "\n" not in message
        return [] if fine else [Wrong(run.name, run.source.name, f"refused with {message!r}")]
    except Exception as error:
        return _all_wrong(run, f"it raised {type(error).__name__}: {error}")
    if not run.expected:
        return [Wrong(run.name, run.source.name, "not refused")]
    rows = rows_of(labels)
    wrong = [
        Wrong(expected.kind, name, why)
        for name, expected in run.expected.items()
        if (why := fault_of(rows.get(name, []), expected))
    ]
    return wrong + [
        Wrong("rows of nothing", name, str(row[0])) for name, row in rows.items() if name not in run.expected
    ]


def _all_wrong(run: Run, why: str) -> list[Wrong]:
    inputs = {name: expected.kind for name, expected in run.expected.items()} or {run.source.name: run.name}
    return [Wrong(kind, name, why) for name, kind in inputs.items()]


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


def table(runs: list[Run], wrong: list[Wrong]) -> str:
    """Format one line per kind."""
    counts = Counter(expected.kind for run in runs for expected in run.expected.values())
    counts += Counter(run.name for run in runs if not run.expected)
    by_kind = defaultdict(list)
    for one in wrong:
        by_kind[one.kind].append(one)
    lines = [f"{'kind':<18}{'inputs':>7}{'right':>7}{'wrong':>7}"]
    for kind in sorted(counts.keys() | by_kind.keys()):
        bad = by_kind[kind]
        lines.append(f"{kind:<18}{counts[kind]:>7}{max(0, counts[kind] - len(bad)):>7}{len(bad):>7}")
        lines += [f"    {one.name!a}: {one.why}" for one in bad[:SHOWN]]
    total = sum(counts.values())
    return "\n".join([*lines, f"{'all':<18}{total:>7}{total - len(wrong):>7}{len(wrong):>7}"])


def main() -> None:
    """Print the table, then one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", metavar="FOLDER", help="keep the files and their labels here")
    args = parser.parse_args()
    print(machine())
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
    print_figures(
        {
            "hostile inputs": total,
            "hostile inputs, right": total - len(wrong),
            "hostile inputs, s": time.monotonic() - started,
            "hostile inputs, s to make": made_s,
            "hostile inputs, largest process, GiB": memory.bytes / 2**30,
        }
    )
    sys.exit(bool(wrong))


def _too_long(*_: object) -> None:
    sys.exit(f"not finished after {LIMIT_S} s: a process hangs")


if __name__ == "__main__":
    main()
