"""Keep the labels that are good enough: by predicted variance, by share, by any condition on a column.

Scalar columns are read first, the heavy ones only of row groups in which a row stays.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.job.record import FILE as RUN_FILE
from annotator.job.stages import count_outcomes
from annotator.labels.conditions import Condition
from annotator.labels.folder import (
    calibration_of,
    groups_that_stay,
    label_facts,
    label_files,
    one_hand,
    opened_label_file,
)
from annotator.labels.schema import write_tables
from annotator.quality.calibration import UNCALIBRATED_3D, Calibration
from annotator.storage.files import (
    check_writable,
    join,
    names_in,
    read_whole,
    remove_file,
    write_whole,
)

#: What a folder that is being made holds until it is whole.
UNFINISHED = "_filter.json"

#: What hands are ordered by: the mean over joints of the length of a joint's std. And what limits them: the largest.
MEAN_STD, LARGEST_STD = "joint_std_mm", "max_joint_std_mm"

#: Rows of a row group in sorted files: so few that a limit on std leaves most groups unread.
SORTED_GROUP = 32


@dataclass(frozen=True)
class Keep:
    """Which rows stay: those that meet all that is given."""

    max_joint_std_mm: float | None = None  # of the least sure joint
    keep_best: float | None = None  # a share of the hands that meet the rest, the surest
    per: str | None = None  # that share of each value of this column
    where: str | None = None  # see `annotator.labels.conditions`

    def __post_init__(self) -> None:
        if self.max_joint_std_mm is None and self.keep_best is None and self.where is None:
            raise UserError("nothing says what to keep: give --max-joint-std-mm, --keep-best or --where")
        if self.keep_best is not None and not 0 < self.keep_best <= 1:
            raise UserError(f"keep-best is {self.keep_best}: give a share between 0 and 1, such as 0.5")
        if self.per is not None and self.keep_best is None:
            raise UserError("--per says of what --keep-best keeps a share: give both")


@dataclass
class Filtered:
    """What was kept."""

    rows: int = 0
    kept: int = 0
    bytes_there: int = 0  # in all columns
    bytes_read: int = 0
    expected_error_mm: float | None = None  # mean error of the kept hands' joints, if like the calibration's
    calibrations: tuple[Calibration, ...] = ()  # of the files with kept rows

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
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Filtered:
    """Write the rows that stay as a new label set, or the uris of their photos as a list.

    Args:
        labels: path or URL of a label folder.
        out: a new folder; or with `as_list` a new text file. An unfinished folder is gone on with.
        keep: which rows stay.
        as_list: one uri a line.
        sort: order each file's rows by std, in small row groups, so that later filters leave most of them unread.
        on_progress: told how many files of how many are done.

    Raises:
        UserError: these are no labels, of several hand models, or without a column that is asked for; `out` holds
            something; nothing is left.
    """
    files = sorted(label_files(labels))
    if not files:
        raise UserError(
            f"'{labels}' holds no labels (data/*.parquet): give a folder that `amvur annotate` wrote"
        )
    with _opened(labels, files[0]) as first:
        rows = _Rows(keep, first)
    plan = {**asdict(keep), "labels": labels, "sort": sort}
    made = _check_list(out) if as_list else _begin_folder(out, plan)
    passes = 1 if keep.keep_best is None else 2
    filtered = Filtered()
    if keep.keep_best is not None:
        for number, name in enumerate(files):
            with _opened(labels, name) as file:
                filtered.bytes_read += rows.weigh(file)
            on_progress(number + 1, passes * len(files))
        rows.set_limits(keep.keep_best)
    uris: dict[str, None] = {}
    outcomes: Counter[str] = Counter()
    error_mm, hands = 0.0, 0
    calibrations: dict[Calibration, None] = {}
    for number, name in enumerate(files):
        with _opened(labels, name) as file:
            scalars, stay = rows.of(file)
            kept = scalars.filter(pa.array(stay))
            if as_list:
                uris.update(dict.fromkeys(kept["image_uri"].to_pylist()))
            else:
                outcomes.update(count_outcomes(kept.select(["status", "reason", "hand_index"]).to_pylist()))
                if len(kept) and name not in made:
                    write_whole(join(out, "data", name), _encoded(file.rows(stay), sort))
            filtered.bytes_read += file.bytes_read
            filtered.bytes_there += file.bytes_there
        filtered.rows += len(stay)
        filtered.kept += len(kept)
        hands += len(kept) - kept[MEAN_STD].null_count
        error_mm += float(np.nansum(file.calibration.joint_error(_floats(kept, MEAN_STD))))
        if len(kept):
            calibrations[file.calibration] = None
        on_progress((passes - 1) * len(files) + number + 1, passes * len(files))
    if not filtered.kept:
        if not as_list:
            remove_file(join(out, UNFINISHED))  # what is asked for next may go to the same place
        raise UserError(f"none of the {filtered.rows} rows stays: ask for less")
    filtered.calibrations = tuple(calibrations)
    if hands and all(one.measures_3d for one in calibrations):
        filtered.expected_error_mm = error_mm / hands
    if as_list:
        write_whole(out, "".join(f"{uri}\n" for uri in uris).encode())
    else:
        _end_folder(out, labels, plan, dict(sorted(outcomes.items())))
    return filtered


@dataclass
class _Rows:
    """Which rows of a file stay."""

    keep: Keep
    first: _LabelFile
    limits: dict[Any, float] = field(default_factory=dict)  # largest std that stays, by the value of `per`

    def __post_init__(self) -> None:
        keep, names = self.keep, self.first.names
        self._where = None if keep.where is None else Condition(keep.where, names)
        needed = ["status", "reason", "hand_index", "image_uri", MEAN_STD]
        needed += [LARGEST_STD] if keep.max_joint_std_mm is not None else []
        needed += [keep.per] if keep.per else []
        needed += self._where.columns if self._where else []
        for name in needed:
            if name not in names:
                raise UserError(f"there is no column '{name}'; there are {', '.join(names)}")
        self._columns = list(dict.fromkeys(needed))
        self._weights: dict[Any, list[NDArray[np.float32]]] = defaultdict(list)
        self._hand = self.first.facts.get("hand")

    def weigh(self, file: _LabelFile) -> int:
        """Note the std of the rows that meet all but the share: 4 bytes a row; returns how many bytes were read."""
        scalars, stay = self._meeting(file)
        std_mm = _floats(scalars, MEAN_STD)
        for value, rows in self._by_value(scalars):
            self._weights[value].append(std_mm[rows & stay])
        return file.bytes_read

    def set_limits(self, share: float) -> None:
        """From the weights: of each value of `per`, the std below which that share lies."""
        for value, parts in self._weights.items():
            std_mm = np.concatenate(parts)
            count = math.ceil(share * len(std_mm))
            self.limits[value] = float(np.partition(std_mm, count - 1)[count - 1]) if count else -math.inf
        self._weights.clear()

    def of(self, file: _LabelFile) -> tuple[pa.Table, NDArray[np.bool_]]:
        """A file's scalar columns, and which rows stay.

        Raises:
            UserError: the file is of another hand model than the first, or its std orders nothing.
        """
        one_hand(file.path, file.facts, self._hand)
        scalars, stay = self._meeting(file)
        if self.keep.keep_best is not None:
            std_mm = _floats(scalars, MEAN_STD)
            for value, rows in self._by_value(scalars):
                stay &= ~rows | (std_mm <= self.limits[value])
        return scalars, stay

    def _meeting(self, file: _LabelFile) -> tuple[pa.Table, NDArray[np.bool_]]:
        keep = self.keep
        if keep.keep_best is not None and file.facts.get("std_is_constant"):
            raise UserError(
                f"'{file.path}' has one std for all hands, for its network is a prior-net alone: no share of them is "
                "the best; keep by another column (where)"
            )
        scalars = file.scalars(self._columns)
        stay = np.ones(len(scalars), bool)
        if self._where:
            stay &= self._where.mask(scalars)
        if keep.max_joint_std_mm is not None:
            stay &= _floats(scalars, LARGEST_STD) <= keep.max_joint_std_mm
        if keep.keep_best is not None:
            stay &= ~np.isnan(_floats(scalars, MEAN_STD))
        return scalars, stay

    def _by_value(self, scalars: pa.Table) -> Iterator[tuple[Any, NDArray[np.bool_]]]:
        if self.keep.per is None:
            yield None, np.ones(len(scalars), bool)
            return
        values = scalars[self.keep.per].combine_chunks().dictionary_encode()
        codes = values.indices.fill_null(-1).to_numpy()
        for code in np.unique(codes):
            yield (None if code < 0 else values.dictionary[code].as_py()), codes == code


class _LabelFile:
    """One label file; counts what is read of it."""

    def __init__(self, path: str, file: pq.ParquetFile) -> None:
        self.path, self.bytes_read, self._file = path, 0, file
        self.names: list[str] = file.schema_arrow.names
        self.facts = label_facts(path, file.schema_arrow)
        self.calibration = calibration_of(path, self.facts)
        self._metadata = file.metadata
        self.bytes_there = self._size(range(self._metadata.num_row_groups), None)

    def scalars(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all rows."""
        self.bytes_read += self._size(range(self._metadata.num_row_groups), set(columns))
        return self._file.read(columns=list(columns), use_threads=False)

    def rows(self, stay: NDArray[np.bool_]) -> pa.Table:
        """All columns of the rows that stay; row groups without any are not read."""
        groups, mask = groups_that_stay(self._file, stay)
        self.bytes_read += self._size(groups, None)
        return self._file.read_row_groups(groups, use_threads=False).filter(pa.array(mask))

    def _size(self, groups: Sequence[int], columns: set[str] | None) -> int:
        size = 0
        for number in groups:
            group = self._metadata.row_group(number)
            for k in range(group.num_columns):
                column = group.column(k)
                if columns is None or column.path_in_schema.partition(".")[0] in columns:
                    size += column.total_compressed_size
        return size


@contextmanager
def _opened(labels: str, name: str) -> Iterator[_LabelFile]:
    path = join(labels, "data", name)
    with opened_label_file(path) as file:
        yield _LabelFile(path, file)


def _floats(table: pa.Table, name: str) -> NDArray[np.float32]:
    return table[name].to_numpy().astype(np.float32, copy=False)


def _encoded(table: pa.Table, sort: bool) -> bytes:
    if sort:
        table = table.sort_by(MEAN_STD)
    step = SORTED_GROUP if sort else len(table)
    sink = io.BytesIO()
    write_tables(sink, (table.slice(k, step) for k in range(0, len(table), step)), table.schema)
    return sink.getvalue()


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
