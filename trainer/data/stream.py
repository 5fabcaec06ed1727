"""Which examples make up which step, and reading only those.

A step's examples follow from the configuration, the seed and the step's number alone: whoever resumes at a step, or
shares it among more workers, sees what one worker would have seen without a stop. A collection is dealt into
lanes, like cards: lane l holds row groups l, l + LANES, ...; example number n of a source comes from lane n % LANES.
A worker of W takes the lanes l with l % W = its rank, so it reads its own shards and nobody else's.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from annotator.errors import UserError
from annotator.hand.model import HandModel
from annotator.io.storage import join, names_in, open_file
from trainer.batch import Batch
from trainer.config import SYNTHETIC, TARGETS, SourceConfig, Target, TrainConfig
from trainer.data.read import COLUMNS, FACTS, Facts, Rows, facts_of, read_example
from trainer.keyed import keys

#: Lanes of a collection; at most so many workers can share it.
LANES = 240

#: Row groups that are shuffled together: an example meets different neighbours in every epoch.
POOL = 4

#: Real photos are cut so much wider than the network's crop, for augmentation to turn and shift.
MARGIN = 1.4


class Synthetic:
    """Hands drawn as needed, with all targets."""

    lanes = LANES

    def __init__(
        self,
        hand: HandModel,
        size_px: int,
        config: SourceConfig,
        seed: int,
        device: str | torch.device = "cpu",
    ) -> None:
        from trainer.synth import SyntheticHands  # not needed by those who train on photos

        self.hands = SyntheticHands(hand, size_px, seed, device)
        self.config = config

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The examples with these numbers."""
        indices = torch.as_tensor(numbers, dtype=torch.int64)
        if self.config.count:
            indices = indices % self.config.count
        return withhold(self.hands.batch(self.config.first + indices), self.config.targets)


class Stored:
    """Examples from `OUT/data/*.parquet`, in another order every epoch."""

    def __init__(
        self, url: str, hand: HandModel, size_px: int, config: SourceConfig, seed: int, margin: float = MARGIN
    ) -> None:
        """Read every file's footer, no more. Images of `size_px` show the hand's crop `margin` times as wide.

        Raises:
            UserError: no examples there, or meshes of another hand model.
        """
        self.url, self.config, self.seed, self.margin = url, config, seed, margin
        self.size_px, self.vertex_count = size_px, hand.vertex_count
        names = sorted(name for name in names_in(join(url, "data")) if name.endswith(".parquet"))
        if not names:
            raise UserError(f"'{url}' holds no examples (data/*.parquet): make them with `amvur convert`")
        with ThreadPoolExecutor(16) as pool:
            footers = list(pool.map(lambda name: _footer(join(url, "data", name)), names))
        self.has_vertices = _check_hand(url, footers[0], hand)
        counted = [
            (name, g, footer.metadata.row_group(g).num_rows)
            for name, footer in zip(names, footers, strict=True)
            for g in range(footer.metadata.num_row_groups)
        ]
        groups = _window(counted, config.first, config.count)
        if not groups:
            raise UserError(f"'{url}' has no examples from number {config.first} on")
        self.total = sum(stop - start for _, _, start, stop in groups)
        self.by_row = len(groups) < 16
        self.lanes = min(LANES, self.total if self.by_row else len(groups))
        self._groups = groups
        self._lane = [self._units(lane) for lane in range(self.lanes)]
        self._pool: dict[int, tuple[tuple[int, int], list[tuple[Rows, int]]]] = {}
        self._files: dict[str, pq.ParquetFile] = {}

    def _units(self, lane: int) -> list[tuple[str, int, int, int]]:
        """What a lane holds: row groups; of a small collection single rows, so that all workers have some."""
        if not self.by_row:
            return self._groups[lane :: self.lanes]
        rows = [
            (name, g, row, row + 1) for name, g, start, stop in self._groups for row in range(start, stop)
        ]
        return rows[lane :: self.lanes]

    def __len__(self) -> int:
        return self.total

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The examples with these numbers."""
        return Batch.join([self._example(number) for number in numbers])

    def in_order(self, size: int) -> Iterator[tuple[Batch, list[Facts]]]:
        """All examples once, in the order of the files, in batches, with what they say of themselves."""
        part: list[tuple[Batch, Facts]] = []
        for name, group, start, stop in self._groups:
            rows = self._rows(name, group, (*COLUMNS, *FACTS))
            for row in range(start, stop):
                part.append((self._read(rows, row), facts_of(rows, row)))
                if len(part) == size:
                    yield Batch.join([batch for batch, _ in part]), [facts for _, facts in part]
                    part = []
        if part:
            yield Batch.join([batch for batch, _ in part]), [facts for _, facts in part]

    def _example(self, number: int) -> Batch:
        lane, place = number % self.lanes, number // self.lanes
        units = self._lane[lane]
        sizes = [stop - start for _, _, start, stop in units]
        epoch, place = divmod(place, sum(sizes))
        chance = np.random.default_rng([self.seed, lane, epoch])
        order = chance.permutation(len(units))
        # Units are drawn together until they hold some rows to shuffle.
        ends = np.cumsum([sizes[i] for i in order])
        first = bisect_right(ends, place) // POOL * POOL
        place -= int(ends[first - 1]) if first else 0
        held = self._pool.get(lane)
        if held is None or held[0] != (epoch, first):
            rows = []
            for name, group, start, stop in (units[i] for i in order[first : first + POOL]):
                read = self._rows(name, group)
                rows += [(read, row) for row in range(start, stop)]
            mixed = np.random.default_rng([self.seed, lane, epoch, first]).permutation(len(rows))
            rows = [rows[i] for i in mixed]
            held = self._pool[lane] = ((epoch, first), rows)
        return self._read(*held[1][place])

    def _read(self, rows: Rows, row: int) -> Batch:
        targets = tuple(t for t in self.config.targets if t != "vertices" or self.has_vertices)
        return read_example(rows, row, self.size_px, self.margin, targets, self.vertex_count)

    def _rows(self, name: str, group: int, columns: Sequence[str] = COLUMNS) -> Rows:
        if name not in self._files:
            while len(self._files) > 8:
                self._files.pop(next(iter(self._files))).close()
            self._files[name] = pq.ParquetFile(open_file(join(self.url, "data", name)))
        file = self._files[name]
        there = [column for column in columns if column in file.schema_arrow.names]
        return Rows(file.read_row_group(group, columns=there, use_threads=False))


def withhold(batch: Batch, targets: Sequence[Target]) -> Batch:
    """The batch with every target but these forgotten."""
    nothing = Batch.empty(len(batch), batch.image.shape[-1], batch.vertices_mm.shape[1])
    for target in set(TARGETS) - set(targets):
        values = target if target in ("joints2d", "hand_mask") else f"{target}_mm"
        batch = replace(
            batch, **{name: getattr(nothing, name).to(batch.key.device) for name in (values, f"has_{target}")}
        )
    return batch


def open_source(config: SourceConfig, hand: HandModel, crop_px: int, seed: int) -> Synthetic | Stored:
    """The source a configuration names, for training."""
    if config.source == SYNTHETIC:
        return Synthetic(hand, crop_px, config, seed)
    return Stored(config.source, hand, round(crop_px * MARGIN), config, seed)


@dataclass(frozen=True)
class Order:
    """Examples still to be drawn, where the network is."""

    source: int
    numbers: list[int]
    key: Tensor  # (n,)


class Steps(Dataset[list[Batch | Order]]):
    """Step number to one worker's part of its batch: one `Batch` a source, images still of each source's own size.

    With `draw_later` synthetic hands come as an `Order`, for `filled` to draw on the network's own device.
    """

    def __init__(
        self, config: TrainConfig, hand: HandModel, rank: int = 0, workers: int = 1, draw_later: bool = False
    ) -> None:
        self.config, self.hand, self.rank, self.workers = config, hand, rank, workers
        self.draw_later = draw_later
        self.counts = shares(config.batch_size, [source.share for source in config.data])
        self._opened: dict[int, Synthetic | Stored] = {}

    def _lanes(self, number: int) -> int:
        return LANES if self._is_drawn_later(number) else self._source(number).lanes

    def _is_drawn_later(self, number: int) -> bool:
        return self.draw_later and self.config.data[number].source == SYNTHETIC

    def _source(self, number: int, device: str | torch.device = "cpu") -> Synthetic | Stored:
        """Opened where it is used: loader processes open their own files."""
        if number not in self._opened:
            source, crop_px = self.config.data[number], self.config.network.crop_px
            seed = self.config.seed + number
            if source.source == SYNTHETIC:
                self._opened[number] = Synthetic(self.hand, crop_px, source, seed, device)
            else:
                self._opened[number] = Stored(source.source, self.hand, round(crop_px * MARGIN), source, seed)
        return self._opened[number]

    def check(self) -> None:
        """Open all sources here once, so that what is wrong with them is said before anything starts.

        Raises:
            UserError: a source is not there or has too few examples for this many workers.
        """
        for number, source in enumerate(self.config.data):
            if source.source != SYNTHETIC and self._source(number).lanes < self.workers:
                raise UserError(
                    f"'{source.source}' has too few examples to share among {self.workers} workers"
                )
        self._opened = {}

    def __getitem__(self, step: int) -> list[Batch | Order]:
        """This worker's examples of a step."""
        parts: list[Batch | Order] = []
        for number, count in enumerate(self.counts):
            lanes = self._lanes(number)
            wanted = range(step * count, (step + 1) * count)
            mine = [n for n in wanted if n % lanes % self.workers == self.rank]
            if not mine:
                continue
            order = Order(number, mine, keys(self.config.seed, number, step, torch.tensor(mine)))
            parts.append(order if self._is_drawn_later(number) else self._filled(order, "cpu"))
        return parts

    def filled(self, parts: Sequence[Batch | Order], device: torch.device) -> list[Batch]:
        """A step's parts on a device, orders drawn there."""
        return [self._filled(part, device) if isinstance(part, Order) else part.to(device) for part in parts]

    def _filled(self, order: Order, device: str | torch.device) -> Batch:
        batch = self._source(order.source, device).batch(order.numbers)
        return replace(batch, key=order.key.to(batch.image.device))


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to the weights (largest remainders)."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(value) for value in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_rest[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _window(groups: list[tuple[str, int, int]], first: int, count: int) -> list[tuple[str, int, int, int]]:
    """Row groups (file, group, start, stop) that hold examples first ... first + count."""
    kept, seen = [], 0
    for name, group, rows in groups:
        start = max(first - seen, 0)
        stop = min(first + count - seen, rows) if count else rows
        if start < stop:
            kept.append((name, group, start, stop))
        seen += rows
    return kept


def _footer(url: str) -> pq.ParquetFile:
    try:
        with open_file(url) as file:
            return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise UserError(f"'{url}' is damaged: {str(error).splitlines()[0]}") from None


def _check_hand(url: str, footer: pq.ParquetFile, hand: HandModel) -> bool:
    """Whether meshes of these examples are this hand model's."""
    schema = footer.schema_arrow
    facts = json.loads((schema.metadata or {}).get(b"amvur", b"{}"))
    missing = [name for name in ("image", "is_right", "width", "height") if name not in schema.names]
    if missing:
        raise UserError(f"'{url}' holds no training examples (no column '{missing[0]}'): use `amvur convert`")
    return facts.get("hand") == hand.id
