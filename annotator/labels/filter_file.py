"""Filter one label file of `amvur filter`, in few requests and in any process.

Scalar columns are read first, heavy columns only for row groups with a kept row.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.labels.conditions import Condition
from annotator.labels.folder import check_hand_model
from annotator.labels.label_file import LabelFile, opened_labels
from annotator.labels.outcomes import count_outcomes
from annotator.labels.schema import write_tables
from annotator.quality.calibration import Calibration
from annotator.storage.files import join, write_atomic

#: The column that orders hands, the mean over joints of a joint's std, and the column that limits them, the largest.
MEAN_STD, LARGEST_STD = "joint_std_mm", "max_joint_std_mm"

#: Rows per row group of sorted files: small, so that a limit on std skips most groups.
SORTED_GROUP = 32

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Keep:
    """Conditions on kept rows; all given conditions must hold."""

    max_joint_std_mm: float | None = None  # largest std of a hand's joints
    keep_best: float | None = None  # share of the hands that meet the other conditions, by lowest std
    per: str | None = None  # apply the share per value of this column
    where: str | None = None  # see `annotator.labels.conditions`

    def __post_init__(self) -> None:
        if self.max_joint_std_mm is None and self.keep_best is None and self.where is None:
            raise UserError(
                "no condition: give max_joint_std_mm, keep_best or where (--max-joint-std-mm, --keep-best, --where)"
            )
        if self.keep_best is not None and not 0 < self.keep_best <= 1:
            raise UserError(
                f"keep_best (--keep-best) is {self.keep_best}: give a share between 0 and 1, such as 0.5"
            )
        if self.per is not None and self.keep_best is None:
            raise UserError("per (--per) applies to keep_best (--keep-best): give both")


@dataclass(frozen=True)
class FilterPlan:
    """The work on each label file; pickled to other processes."""

    labels: str
    out: str | None  # a label set; None: list photos only
    sort: bool
    rows: RowFilter


class FileStds(NamedTuple):
    """Std of a file's rows that meet all conditions but the share, per value of `per`."""

    std_mm: dict[Any, Floats]
    bytes_read: int


@dataclass(frozen=True)
class FileResult:
    """The result of one file."""

    rows: int
    kept: int
    hands: int  # kept rows with a std
    error_mm: float  # sum of their expected errors
    calibration: Calibration
    bytes_read: int
    bytes_total: int
    outcomes: dict[str, int] = field(default_factory=dict)
    uris: tuple[str, ...] = ()  # if only photos are listed


def read_stds(plan: FilterPlan, name: str, size: int) -> FileStds:
    """Read the std of one file's rows: 4 bytes per row."""
    with opened_labels(plan.labels, name, size) as file:
        return plan.rows.stds(file)


def filter_file(plan: FilterPlan, name: str, size: int, is_made: bool) -> FileResult:
    """Write the kept rows of one file, unless an earlier run did (`is_made`).

    Raises:
        UserError: the file is damaged, of another hand model than the first, or has one std for all hands.
    """
    with opened_labels(plan.labels, name, size) as file:
        scalars, is_kept = plan.rows.kept_rows(file)
        kept = scalars.filter(pa.array(is_kept))
        uris: tuple[str, ...] = ()
        outcomes: dict[str, int] = {}
        if plan.out is None:
            uris = tuple(dict.fromkeys(kept["image_uri"].to_pylist()))
        else:
            outcomes = count_outcomes(kept.select(["status", "reason", "hand_index"]).to_pylist())
            if len(kept) and not is_made:
                write_atomic(join(plan.out, "data", name), _encoded(file.rows(is_kept), plan.sort))
        return FileResult(
            rows=len(is_kept),
            kept=len(kept),
            hands=len(kept) - kept[MEAN_STD].null_count,
            error_mm=float(np.nansum(file.calibration.joint_error(_floats(kept, MEAN_STD)))),
            calibration=file.calibration,
            bytes_read=file.bytes_read,
            bytes_total=file.bytes_total,
            outcomes=outcomes,
            uris=uris,
        )


@dataclass
class RowFilter:
    """Selects the kept rows of files."""

    keep: Keep
    names: Sequence[str]  # of the columns
    hand: str | None  # the hand model of all files
    limits: dict[Any, float] = field(default_factory=dict)  # largest kept std, per value of `per`

    def __post_init__(self) -> None:
        keep, names = self.keep, self.names
        self._where = None if keep.where is None else Condition(keep.where, names)
        needed = ["status", "reason", "hand_index", "image_uri", MEAN_STD]
        needed += [LARGEST_STD] if keep.max_joint_std_mm is not None else []
        needed += [keep.per] if keep.per else []
        needed += self._where.columns if self._where else []
        for name in needed:
            if name not in names:
                raise UserError(f"there is no column '{name}'; give one of {', '.join(names)}")
        self._columns = list(dict.fromkeys(needed))
        # Stds need these columns only: fewer bytes, close together in the file.
        self._std_columns = [name for name in self._columns if name in _columns_of_stds(keep, self._where)]

    def stds(self, file: LabelFile) -> FileStds:
        """Return the std of rows that meet all conditions but the share."""
        scalars, is_kept = self._conditions_met(file, self._std_columns)
        std_mm = _floats(scalars, MEAN_STD)
        return FileStds(
            {value: std_mm[rows & is_kept] for value, rows in self._by_value(scalars)}, file.bytes_read
        )

    def kept_rows(self, file: LabelFile) -> tuple[pa.Table, NDArray[np.bool_]]:
        """Return a file's scalar columns, and a mask of the kept rows.

        Raises:
            UserError: the file is of another hand model than the first, or has one std for all hands.
        """
        check_hand_model(file.path, file.facts, self.hand)
        scalars, is_kept = self._conditions_met(file, self._columns)
        if self.keep.keep_best is not None:
            std_mm = _floats(scalars, MEAN_STD)
            for value, rows in self._by_value(scalars):
                is_kept &= ~rows | (std_mm <= self.limits[value])
        return scalars, is_kept

    def _conditions_met(self, file: LabelFile, columns: Sequence[str]) -> tuple[pa.Table, NDArray[np.bool_]]:
        keep = self.keep
        if keep.keep_best is not None and file.facts.get("std_is_constant"):
            raise UserError(
                f"'{file.path}' has one std for all hands (its network is prior-net alone), so std cannot rank them: "
                "filter by another column, with where (--where)"
            )
        scalars = file.scalars(columns)
        is_kept = np.ones(len(scalars), bool)
        if self._where:
            is_kept &= self._where.mask(scalars)
        if keep.max_joint_std_mm is not None:
            is_kept &= _floats(scalars, LARGEST_STD) <= keep.max_joint_std_mm
        if keep.keep_best is not None:
            is_kept &= ~np.isnan(_floats(scalars, MEAN_STD))
        return scalars, is_kept

    def _by_value(self, scalars: pa.Table) -> Iterator[tuple[Any, NDArray[np.bool_]]]:
        if self.keep.per is None:
            yield None, np.ones(len(scalars), bool)
            return
        values = scalars[self.keep.per].combine_chunks().dictionary_encode()
        codes = values.indices.fill_null(-1).to_numpy()
        for code in np.unique(codes):
            yield (None if code < 0 else values.dictionary[code].as_py()), codes == code


def _columns_of_stds(keep: Keep, where: Condition | None) -> set[str]:
    return {MEAN_STD, LARGEST_STD, *([keep.per] if keep.per else []), *(where.columns if where else [])}


def limits_of(share: float, stds: Sequence[dict[Any, Floats]]) -> dict[Any, float]:
    """Return per value of `per` the std below which this share of its rows lies."""
    by_value: dict[Any, list[Floats]] = defaultdict(list)
    for of_file in stds:
        for value, std_mm in of_file.items():
            by_value[value].append(std_mm)
    limits = {}
    for value, parts in by_value.items():
        std_mm = np.concatenate(parts)
        count = math.ceil(share * len(std_mm))
        limits[value] = float(np.partition(std_mm, count - 1)[count - 1]) if count else -math.inf
    return limits


def _floats(table: pa.Table, name: str) -> Floats:
    return table[name].to_numpy().astype(np.float32, copy=False)


def _encoded(table: pa.Table, sort: bool) -> bytes:
    if sort:
        table = table.sort_by(MEAN_STD)
    step = SORTED_GROUP if sort else len(table)
    sink = io.BytesIO()
    write_tables(sink, (table.slice(k, step) for k in range(0, len(table), step)), table.schema)
    return sink.getvalue()
