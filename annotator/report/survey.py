"""Read a label set once: counts, histograms and a sample, in constant memory."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from annotator.hand import JOINT_NAMES
from annotator.labels.arrays import array_of
from annotator.labels.folder import calibration_of, check_hand_model, label_facts, label_files, read_columns
from annotator.labels.outcomes import outcome_of
from annotator.quality.calibration import Calibration
from annotator.storage.files import join

#: Stds are counted in steps of 1/8 mm; wider bars are multiples of it. The last step counts all larger values.
STEP_MM, STEPS = 1 / 8, 4096

#: Maximum rows in the page's table: with a hand, without a hand.
OK_ROWS, OTHER_ROWS = 700, 300

#: Photos named per outcome.
EXAMPLES = 3

#: Files read ahead, because stores answer slowly.
_AHEAD = 8

COLUMNS = (
    *("image_id", "image_uri", "frame_index", "hand_index", "status", "reason", "error", "is_right"),
    *("detection_score", "joint_std_mm", "max_joint_std_mm", "checkpoint"),
)


@dataclass
class Histogram:
    """Counts of stds by steps of `STEP_MM`."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(STEPS + 1, np.int64))
    smallest: float = np.inf
    largest: float = -np.inf

    def add(self, std_mm: NDArray[np.floating]) -> None:
        """Count finite stds (any shape)."""
        std_mm = std_mm[np.isfinite(std_mm)]
        step = np.clip(std_mm / STEP_MM, 0, STEPS).astype(np.int64)
        self.counts += np.bincount(step, minlength=STEPS + 1)
        if len(std_mm):
            self.smallest = min(self.smallest, float(std_mm.min()))
            self.largest = max(self.largest, float(std_mm.max()))

    @property
    def total(self) -> int:
        """The number of values counted."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """Return the std below which this share lies, interpolated within a step; 0 without values."""
        if not self.total:
            return 0.0
        below = np.cumsum(self.counts)
        rank = max(share * below[-1], 1e-9)  # share 0 gives the smallest value
        step = int(np.searchsorted(below, rank))
        inside = (rank - (below[step] - self.counts[step])) / max(self.counts[step], 1)
        return float(np.clip((step + inside) * STEP_MM, self.smallest, self.largest))


@dataclass(frozen=True)
class Row:
    """Scalars of one row, with its file and index."""

    file: str
    index: int
    values: dict[str, Any]


class Smallest:
    """The rows with the smallest keys among all offered."""

    def __init__(self, size: int) -> None:
        self._size, self._found = size, list[tuple[float, Row]]()
        self._limit = np.inf  # keys from here on are dropped, infinite ones always

    def offer(self, keys: NDArray[np.floating], file: str, table: pa.Table) -> None:
        """Add rows of a file that have small enough `keys`; infinite keys never count."""
        (better,) = np.nonzero(keys < self._limit)
        if len(better) > self._size:
            better = np.sort(better[np.argsort(keys[better], kind="stable")[: self._size]])
        if not len(better) or not self._size:
            return
        rows = table.take(better).to_pylist()
        new = [(float(keys[i]), Row(file, int(i), values)) for i, values in zip(better, rows, strict=True)]
        self._found = sorted(self._found + new, key=lambda pair: pair[0])[: self._size]
        if len(self._found) == self._size:
            self._limit = self._found[-1][0]

    @property
    def rows(self) -> list[Row]:
        """The rows in order of their keys."""
        return [row for _, row in self._found]


class Survey:
    """Counts, histograms and samples of a label set."""

    def __init__(self, count: int) -> None:
        """Keep `count` of the hands with the lowest and with the highest std."""
        self.rows = self.hands = self.right = 0
        self.outcomes: Counter[str] = Counter()  # of photos: "ok", or "status: reason"
        self.checkpoints: Counter[str] = Counter()  # of hands
        self.examples: dict[str, list[tuple[str, str]]] = {}  # by outcome: (name, error)
        self.std, self.largest = Histogram(), Histogram()
        self.joints = [Histogram() for _ in JOINT_NAMES]
        self.facts: dict[str, Any] = {}  # metadata of the first file
        self.lowest_std, self.highest_std = Smallest(count), Smallest(count)
        self.sample, self.others = Smallest(max(OK_ROWS, count)), Smallest(OTHER_ROWS)
        self._rng = np.random.default_rng(0)

    @property
    def photos(self) -> int:
        """The number of photos with a row."""
        return sum(self.outcomes.values())

    @property
    def calibration(self) -> Calibration:
        """The calibration of the first file."""
        return calibration_of("labels", self.facts)

    @property
    def is_constant(self) -> bool:
        """Whether all hands have the same std, so that it cannot order them."""
        used = np.flatnonzero(self.std.counts)
        return bool(self.facts.get("std_is_constant")) or (self.std.total > 1 and used[-1] - used[0] <= 1)

    def add(self, file: str, table: pa.Table) -> None:
        """Count a file's rows."""
        if not self.facts:
            self.facts = json.loads((table.schema.metadata or {}).get(b"amvur", b"{}"))
        scalars = table.select(COLUMNS)
        ok = np.asarray(pc.equal(table["status"], "ok").fill_null(False))
        std_mm = floats(table, "joint_std_mm")
        self.rows += len(table)
        self.hands += int(ok.sum())
        self.right += int(np.asarray(table["is_right"].fill_null(False))[ok].sum())
        self._count_outcomes(scalars)
        self._count_stds(table.filter(pa.array(ok)))
        known = ok & np.isfinite(std_mm)
        self.lowest_std.offer(np.where(known, std_mm, np.inf), file, scalars)
        self.highest_std.offer(np.where(known, -std_mm, np.inf), file, scalars)
        chance = self._rng.random(len(table))
        self.sample.offer(np.where(ok, chance, np.inf), file, scalars)
        self.others.offer(np.where(ok, np.inf, chance), file, scalars)

    def _count_outcomes(self, scalars: pa.Table) -> None:
        # Like `annotator.labels.outcomes.count_outcomes`: each photo counts once, however many hands it has.
        first = scalars.filter(pc.less_equal(scalars["hand_index"], 0))
        for group in first.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist():
            outcome = outcome_of(group)
            self.outcomes[outcome] += group["count_all"]
            examples = self.examples.setdefault(outcome, [])
            if outcome != "ok" and len(examples) < EXAMPLES:
                same = pc.equal(first["status"], group["status"])
                if group["reason"] is not None:
                    same = pc.and_(same, pc.equal(first["reason"], group["reason"]))
                rows = first.filter(same).slice(0, EXAMPLES - len(examples)).to_pylist()
                examples += [(row["image_id"] or row["image_uri"], row["error"] or "") for row in rows]

    def _count_stds(self, hands: pa.Table) -> None:
        self.std.add(floats(hands, "joint_std_mm"))
        self.largest.add(floats(hands, "max_joint_std_mm"))
        lengths = np.linalg.norm(vectors(hands, "joints3d_std_mm").astype(np.float64), axis=-1)
        for joint, histogram in enumerate(self.joints):
            histogram.add(lengths[:, joint])
        for group in pc.value_counts(hands["checkpoint"].drop_null()).to_pylist():
            self.checkpoints[group["values"]] += group["counts"]


def floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Return a column of numbers (n,), null as NaN."""
    return np.asarray(table[name].cast(pa.float64()).fill_null(np.nan))


def vectors(table: pa.Table, name: str) -> NDArray[np.float32]:
    """Return the rows of a column of nested fixed-size lists that are not null, such as (n, 21, 3)."""
    return array_of(table[name].drop_null()).astype(np.float32, copy=False)


def survey(
    labels: str,
    count: int,
    more: Sequence[str] = (),
    on_table: Callable[[pa.Table], None] = lambda table: None,
) -> Survey:
    """Read a label set once.

    Args:
        labels: path or URL.
        count: number of hands with the lowest, and with the highest std, to keep.
        more: further columns for `on_table`.
        on_table: called with the table of each file.

    Raises:
        UserError: a file is damaged, or has another schema version or another hand model than the first.
    """
    found = Survey(count)
    hands: list[str | None] = []
    for name, table in _tables(labels, [*COLUMNS, "joints3d_std_mm", *more]):
        facts = label_facts(join(labels, "data", name), table.schema)
        hands.append(facts.get("hand"))
        check_hand_model(join(labels, "data", name), facts, hands[0])
        found.add(name, table)
        on_table(table)
    return found


def _tables(labels: str, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield name and table of all files in order; some are read ahead."""
    names = sorted(label_files(labels))
    waiting: deque[tuple[str, Future[pa.Table]]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        for name in names:
            waiting.append((name, pool.submit(read_columns, labels, name, columns)))
            if len(waiting) >= _AHEAD:
                first, table = waiting.popleft()
                yield first, table.result()
        for first, table in waiting:
            yield first, table.result()
