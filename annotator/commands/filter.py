"""Keep the labels that are good enough: by predicted variance, by share, by any condition on a column.

File by file (`annotator.labels.filter_file`), as tasks of Ray where there are many.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from annotator.errors import UserError
from annotator.job.each_file import in_order, pays, tasks
from annotator.job.record import FILE as RUN_FILE
from annotator.labels.filter_file import (
    FilterPlan,
    Keep,
    Kept,
    Rows,
    filter_file,
    limits_of,
    opened,
    weigh_file,
)
from annotator.labels.folder import label_file_sizes, label_files
from annotator.quality.calibration import UNCALIBRATED_3D, Calibration
from annotator.storage.files import (
    check_writable,
    is_local,
    join,
    local_path,
    names_in,
    read_whole,
    remove_file,
    write_whole,
)

__all__ = ["Filtered", "Keep", "filter_labels"]

#: What a folder that is being made holds until it is whole.
UNFINISHED = "_filter.json"


@dataclass
class Filtered:
    """What was kept."""

    rows: int = 0
    kept: int = 0
    bytes_there: int = 0  # in all columns
    bytes_read: int = 0
    hands: int = 0  # kept rows with a std
    error_mm: float = 0.0  # the sum of their expected errors
    calibrations: tuple[Calibration, ...] = ()  # of the files with kept rows

    def add(self, kept: Kept) -> None:
        """Count one more file."""
        self.rows += kept.rows
        self.kept += kept.kept
        self.bytes_there += kept.bytes_there
        self.bytes_read += kept.bytes_read
        self.hands += kept.hands
        self.error_mm += kept.error_mm
        if kept.kept and kept.calibration not in self.calibrations:
            self.calibrations += (kept.calibration,)

    @property
    def expected_error_mm(self) -> float | None:
        """Mean error of the kept hands' joints, on photos like the calibration's; None where that is not known."""
        is_known = self.hands and all(one.measures_3d for one in self.calibrations)
        return self.error_mm / self.hands if is_known else None

    def table(self) -> list[tuple[str, ...]]:
        """For people."""
        share, read = self.kept / max(self.rows, 1), self.bytes_read / max(self.bytes_there, 1)
        rows: list[tuple[str, ...]] = [
            ("kept", f"{self.kept:,} of {self.rows:,} rows", f"{share:.1%}"),
            ("read", f"{self.bytes_read / 1e6:,.1f} of {self.bytes_there / 1e6:,.1f} MB", f"{read:.1%}"),
        ]
        only_2d = [one for one in self.calibrations if one.fitted_on and not one.measures_3d]
        if self.expected_error_mm is not None:
            expected = f"{self.expected_error_mm:.1f} mm"
            data = _data_of(self.calibrations)
            rows.append(("expected", expected, f"mean error of the kept joints, on photos like {data}"))
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
    """Write the rows that stay as a new label set, or the uris of their photos as a list.

    Args:
        labels: path or URL of a label folder.
        out: a new folder; or with `as_list` a new text file. An unfinished folder is gone on with.
        keep: which rows stay.
        as_list: one uri a line.
        sort: order each file's rows by std, in small row groups, so that later filters leave most of them unread.
        address: a Ray cluster, `auto`; without, this process alone, or all cores where there is much to read.
        workers: files at once; 1 is this process alone.
        on_progress: told how many files of how many are done.

    Raises:
        UserError: these are no labels, of several hand models, or without a column that is asked for; `out` holds
            something; nothing is left.
    """
    sizes = dict(sorted(label_file_sizes(labels).items()))
    if not sizes:
        raise UserError(
            f"'{labels}' holds no labels (data/*.parquet): give a folder that `amvur annotate` wrote"
        )
    first = next(iter(sizes))
    with opened(labels, first, sizes[first]) as file:
        rows = Rows(keep, file.names, file.facts.get("hand"))
    plan = {**asdict(keep), "labels": labels, "sort": sort}
    made = _check_list(out) if as_list else _begin_folder(out, plan)
    job = FilterPlan(_everywhere(labels), None if as_list else _everywhere(out), sort, rows)
    as_tasks = workers != 1 and (address is not None or pays(labels, list(sizes.values())))
    filtered = Filtered()
    outcomes: Counter[str] = Counter()
    uris: dict[str, None] = {}
    passes, done = 1 if keep.keep_best is None else 2, 0
    places = [job.labels] if job.out is None else [job.labels, job.out]
    with tasks(as_tasks, places, address):
        if keep.keep_best is not None:
            weights = []
            for weighed in in_order(weigh_file, job, list(sizes.items()), as_tasks, workers):
                filtered.bytes_read += weighed.bytes_read
                weights.append(weighed.std_mm)
                done += 1
                on_progress(done, passes * len(sizes))
            rows.limits = limits_of(keep.keep_best, weights)
        items = [(name, size, name in made) for name, size in sizes.items()]
        for kept in in_order(filter_file, job, items, as_tasks, workers):
            filtered.add(kept)
            outcomes.update(kept.outcomes)
            uris.update(dict.fromkeys(kept.uris))
            done += 1
            on_progress(done, passes * len(sizes))
    if not filtered.kept:
        if not as_list:
            remove_file(join(out, UNFINISHED))  # what is asked for next may go to the same place
        raise UserError(f"none of the {filtered.rows} rows stays: ask for less")
    if as_list:
        write_whole(out, "".join(f"{uri}\n" for uri in uris).encode())
    else:
        _end_folder(out, labels, plan, dict(sorted(outcomes.items())))
    return filtered


def _everywhere(place: str) -> str:
    """A folder as processes elsewhere find it."""
    return str(local_path(place).absolute()) if is_local(place) else place


def _check_list(out: str) -> set[str]:
    if read_whole(out) is not None:
        raise UserError(f"'{out}' exists: give a new file for the list")
    return set()


def _begin_folder(out: str, plan: dict[str, Any]) -> set[str]:
    """Files that an earlier run of the same plan wrote."""
    there = {name for name in names_in(out) if not name.startswith(".")}
    begun = read_whole(join(out, UNFINISHED))
    if begun is not None and json.loads(begun) == plan:
        return label_files(out)
    if there:
        raise UserError(f"'{out}' holds something: give a new folder")
    check_writable(out)
    write_whole(join(out, UNFINISHED), json.dumps(plan).encode())
    return set()


def _end_folder(out: str, labels: str, plan: dict[str, Any], outcomes: dict[str, int]) -> None:
    """What lies beside the rows: the faces, and the record, which now says what was kept."""
    faces = read_whole(join(labels, "faces.parquet"))
    if faces is not None:
        write_whole(join(out, "faces.parquet"), faces)
    record = json.loads(read_whole(join(labels, RUN_FILE)) or b"{}")
    record |= {"outcomes": outcomes, "failed": [], "filtered": [*record.get("filtered", []), plan]}
    write_whole(join(out, RUN_FILE), json.dumps(record, indent=2).encode() + b"\n")
    remove_file(join(out, UNFINISHED))
