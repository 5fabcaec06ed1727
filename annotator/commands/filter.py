"""`filter`: keep the best labels, by predicted std, by share, or by a condition on columns.

It filters file by file (`annotator.labels.filter_file`), as Ray tasks for large label sets.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from annotator.errors import UserError
from annotator.labels.filter_file import (
    FileResult,
    FilterPlan,
    Keep,
    RowFilter,
    filter_file,
    limits_of,
    read_stds,
)
from annotator.labels.folder import RUN_FILE, label_file_sizes, label_files
from annotator.labels.label_file import opened_labels
from annotator.quality.calibration import UNCALIBRATED_3D, Calibration
from annotator.runtime.ordered_tasks import in_order, ray_for_tasks, tasks_are_faster
from annotator.storage.files import absolute, join, read_if_exists, remove_file, write_atomic
from annotator.storage.unfinished import is_left_unfinished, mark_unfinished

__all__ = ["Filtered", "Keep", "filter_labels"]

#: Marks an unfinished folder.
UNFINISHED = "_filter.json"


@dataclass
class Filtered:
    """Kept rows and their statistics."""

    rows: int = 0
    kept: int = 0
    bytes_total: int = 0  # of all columns
    bytes_read: int = 0
    hands: int = 0  # kept rows with a std
    error_mm: float = 0.0  # sum of their expected errors
    calibrations: tuple[Calibration, ...] = ()  # of the files with kept rows

    def add(self, kept: FileResult) -> None:
        """Add the counts of one file."""
        self.rows += kept.rows
        self.kept += kept.kept
        self.bytes_total += kept.bytes_total
        self.bytes_read += kept.bytes_read
        self.hands += kept.hands
        self.error_mm += kept.error_mm
        if kept.kept and kept.calibration not in self.calibrations:
            self.calibrations += (kept.calibration,)

    @property
    def expected_error_mm(self) -> float | None:
        """Expected mean joint error of the kept hands on photos like the calibration's, or None if unknown."""
        is_known = self.hands and all(one.measures_3d for one in self.calibrations)
        return self.error_mm / self.hands if is_known else None

    def table(self) -> list[tuple[str, ...]]:
        """Return rows to print."""
        share, read = self.kept / max(self.rows, 1), self.bytes_read / max(self.bytes_total, 1)
        rows: list[tuple[str, ...]] = [
            ("kept", f"{self.kept:,} of {self.rows:,} rows", f"{share:.1%}"),
            ("read", f"{self.bytes_read / 1e6:,.1f} of {self.bytes_total / 1e6:,.1f} MB", f"{read:.1%}"),
        ]
        only_2d = [one for one in self.calibrations if one.fitted_on and not one.measures_3d]
        if self.expected_error_mm is not None:
            expected = f"{self.expected_error_mm:.1f} mm"
            data = _data_of(self.calibrations)
            rows.append(("expected", expected, f"mean joint error of the kept hands, on photos like {data}"))
        elif only_2d:
            data = _data_of(only_2d)
            rows.append(("3D std", "not calibrated", f"only 2D was, on {data}; {UNCALIBRATED_3D}"))
        return rows


def _data_of(calibrations: Sequence[Calibration]) -> str:
    return "; ".join(dict.fromkeys(one.fitted_on for one in calibrations))


def filter_labels(
    labels: str,
    out: str,
    keep: Keep,
    *,
    as_list: bool = False,
    sort: bool = False,
    address: str | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Filtered:
    """Write the kept rows as a new label set, or the uris of their photos as a list. Run it again to resume.

    Args:
        labels: path or URL of a label set.
        out: a new folder, or with `as_list` a new text file. An unfinished folder resumes.
        keep: the conditions on kept rows.
        as_list: write one uri per line.
        sort: order each file's rows by std, in small row groups, so that later filters read less.
        address: a Ray cluster, or `auto`. Default: this process, or all cores for large label sets.
        workers: files at once; 1 uses this process alone.
        on_progress: called with (files done, files in total).

    Raises:
        UserError: `labels` is not a label set, mixes hand models or lacks a requested column; `out` is not empty;
            no row is kept.
    """
    sizes = dict(sorted(label_file_sizes(labels).items()))
    if not sizes:
        raise UserError(f"'{labels}' holds no labels (data/*.parquet): give a label set")
    first = next(iter(sizes))
    with opened_labels(labels, first, sizes[first]) as file:
        rows = RowFilter(keep, file.names, file.facts.get("hand"))
    plan = {**asdict(keep), "labels": labels, "sort": sort}
    made = _check_list(out) if as_list else _begin_folder(out, plan)
    filter_plan = FilterPlan(absolute(labels), None if as_list else absolute(out), sort, rows)
    as_tasks = workers != 1 and (address is not None or tasks_are_faster(labels, list(sizes.values())))
    filtered = Filtered()
    outcomes: Counter[str] = Counter()
    uris: dict[str, None] = {}
    passes, done = 1 if keep.keep_best is None else 2, 0
    places = [filter_plan.labels] if filter_plan.out is None else [filter_plan.labels, filter_plan.out]
    with ray_for_tasks(as_tasks, places, address):
        if keep.keep_best is not None:
            stds = []
            for file_stds in in_order(read_stds, filter_plan, list(sizes.items()), as_tasks, workers):
                filtered.bytes_read += file_stds.bytes_read
                stds.append(file_stds.std_mm)
                done += 1
                on_progress(done, passes * len(sizes))
            rows.limits = limits_of(keep.keep_best, stds)
        items = [(name, size, name in made) for name, size in sizes.items()]
        for kept in in_order(filter_file, filter_plan, items, as_tasks, workers):
            filtered.add(kept)
            outcomes.update(kept.outcomes)
            uris.update(dict.fromkeys(kept.uris))
            done += 1
            on_progress(done, passes * len(sizes))
    if not filtered.kept:
        if not as_list:
            remove_file(join(out, UNFINISHED))  # the next filter may use the same folder
        raise UserError(f"none of the {filtered.rows} rows is kept: relax the conditions")
    if as_list:
        write_atomic(out, "".join(f"{uri}\n" for uri in uris).encode())
    else:
        _end_folder(out, labels, plan, dict(sorted(outcomes.items())))
    return filtered


def _check_list(out: str) -> set[str]:
    if read_if_exists(out) is not None:
        raise UserError(f"'{out}' exists: give a new file for the list")
    return set()


def _begin_folder(out: str, plan: dict[str, Any]) -> set[str]:
    """Return the files that an earlier run of the same plan wrote."""
    if is_left_unfinished(out, UNFINISHED, plan):
        return label_files(out)
    mark_unfinished(out, UNFINISHED, plan)
    return set()


def _end_folder(out: str, labels: str, plan: dict[str, Any], outcomes: dict[str, int]) -> None:
    """Write the files beside the rows: the faces, and the record with the filter's settings."""
    faces = read_if_exists(join(labels, "faces.parquet"))
    if faces is not None:
        write_atomic(join(out, "faces.parquet"), faces)
    record = json.loads(read_if_exists(join(labels, RUN_FILE)) or b"{}")
    record |= {"outcomes": outcomes, "failed": [], "filtered": [*record.get("filtered", []), plan]}
    write_atomic(join(out, RUN_FILE), json.dumps(record, indent=2).encode() + b"\n")
    remove_file(join(out, UNFINISHED))
