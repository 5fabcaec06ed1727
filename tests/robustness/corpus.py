"""Label the hostile corpus and compare every row with the outcome that follows from how its file was made."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import duckdb

import annotator
from annotator.job.options import ComputeOptions
from tests.robustness.hostile.expected import Expected, Run

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
