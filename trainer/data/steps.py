"""Choose the examples of each step, and read only those.

A step's examples depend only on the configuration, the seed and the step number. So a resumed run, or a run on more
workers, reads the same examples as one worker without a stop. A collection is cut into lanes of equal length; example
number n of a source comes from lane n % LANES. Worker r of W reads the lanes l with l % W = r; its loaders
(`loaders.py`) share those out again. Workers and loaders share only the row groups at the edges of lanes.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from annotator.errors import UserError, first_line
from annotator.hand.model import HandModel
from annotator.labels.schema import SCHEMA_VERSION
from annotator.model.network import Network
from annotator.storage.files import is_local, join, local_path, names_in, open_file, read_if_exists
from trainer.batch import Batch, withhold
from trainer.config import SYNTHETIC, SourceConfig, TrainConfig
from trainer.data.cache import Cached, is_cache, measured_by, read_cache_info
from trainer.data.examples import SUMMARY_FILE, UNFINISHED
from trainer.data.features import samples_maps
from trainer.data.read import COLUMNS, FACTS, Facts, Rows, facts_of, read_example
from trainer.keyed_random import keys

#: Lanes of a collection: the maximum number of workers. Each lane holds one row group in memory.
LANES = 48

#: Files kept open at least, or one per lane: opening one reads its footer, whose size is that of five photos.
OPEN_FILES = 8

#: Width of a real photo's crop over that of the network's crop, for augmentation to rotate and shift.
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
        from trainer.synth import SyntheticHands  # not needed to train on photos

        self.hands = SyntheticHands(hand, size_px, seed, device)
        self.config = config

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return the examples with these numbers."""
        indices = torch.as_tensor(numbers, dtype=torch.int64)
        if self.config.count:
            indices = indices % self.config.count
        return withhold(self.hands.batch(self.config.first + indices, self.config.empty), self.config.targets)


class _RowRange(NamedTuple):
    """A range of rows in a row group."""

    file: str
    group: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Stored:
    """Examples from `OUT/data/*.parquet`, in a different order every epoch."""

    def __init__(
        self, url: str, hand: HandModel, size_px: int, config: SourceConfig, seed: int, margin: float = MARGIN
    ) -> None:
        """Read only the footers of the files. Images of `size_px` show the hand's crop `margin` times as wide.

        Meshes of a hand model other than `hand` are left out, which masks L_V.

        Raises:
            UserError: there are no examples, or files of several hand models.
        """
        self.url, self.config, self.seed, self.margin = url, config, seed, margin
        self.size_px, self.vertex_count = size_px, hand.vertex_count
        names = sorted(name for name in names_in(join(url, "data")) if name.endswith(".parquet"))
        if read_if_exists(join(url, SUMMARY_FILE)) == UNFINISHED:
            raise UserError(f"'{url}' is an unfinished conversion: delete it and convert again")
        if not names:
            raise UserError(f"'{url}' holds no examples (data/*.parquet): make them with `amvur convert`")
        with ThreadPoolExecutor(16) as pool:
            footers = list(pool.map(lambda name: _footer(join(url, "data", name)), names))
        self.has_vertices = _check_hand(url, footers, hand)
        counted = [
            (name, g, footer.metadata.row_group(g).num_rows)
            for name, footer in zip(names, footers, strict=True)
            for g in range(footer.metadata.num_row_groups)
        ]
        groups = _window(counted, config.first, config.count)
        if not groups:
            raise UserError(f"'{url}' has no examples from number {config.first} on: lower `first`")
        self._groups = groups
        # Row number at the end of each group.
        self._ends = np.cumsum([stop - start for _, _, start, stop in groups])
        self.total = int(self._ends[-1])
        self.lanes = min(LANES, self.total)
        self._close()

    def _close(self) -> None:
        self._order: dict[
            int, tuple[int, list[_RowRange]]
        ] = {}  # per lane: the epoch, and its pieces in order
        self._held: OrderedDict[tuple[str, int], Rows] = OrderedDict()
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process: it includes the footers' contents, but no open files."""
        own = {"_order", "_held", "_files"}
        return {name: value for name, value in vars(self).items() if name not in own} | {
            "url": self.places[0]
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._close()

    @property
    def places(self) -> tuple[str, ...]:
        """Return the folder or URL, as other processes find it."""
        return (str(local_path(self.url).absolute()) if is_local(self.url) else self.url,)

    def _pieces(self, lane: int) -> list[_RowRange]:
        """Return the row ranges of a lane; lanes differ by one row at most."""
        return self._between(*(edge * self.total // self.lanes for edge in (lane, lane + 1)))

    def _between(self, first: int, last: int) -> list[_RowRange]:
        """Return the row ranges of the examples from `first` until before `last`, in the order of the files."""
        found = []
        for i in range(bisect_right(self._ends, first), len(self._groups)):
            name, group, start, stop = self._groups[i]
            before = int(self._ends[i]) - (stop - start)
            if before >= last:
                break
            found.append(
                _RowRange(
                    name, group, start + max(first - before, 0), start + min(last - before, stop - start)
                )
            )
        return found

    def __len__(self) -> int:
        return self.total

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return the examples with these numbers."""
        return Batch.join([self._example(number) for number in numbers])

    def in_order(self, size: int, rows: range | None = None) -> Iterator[tuple[Batch, list[Facts]]]:
        """Yield examples once in batches with their facts, in the order of the files.

        `rows` are their places in the window; default all.
        """
        rows = rows or range(self.total)
        part: list[tuple[Batch, Facts]] = []
        for name, group, start, stop in self._between(rows.start, rows.stop):
            held = self._rows(name, group, (*COLUMNS, *FACTS))
            for row in range(start, stop):
                part.append((self._read(held, row), facts_of(held, row)))
                if len(part) == size:
                    yield Batch.join([batch for batch, _ in part]), [facts for _, facts in part]
                    part = []
        if part:
            yield Batch.join([batch for batch, _ in part]), [facts for _, facts in part]

    def _example(self, number: int) -> Batch:
        lane, place = number % self.lanes, number // self.lanes
        rows = (lane + 1) * self.total // self.lanes - lane * self.total // self.lanes
        epoch, place = divmod(place, rows)
        if self._order.get(lane, (-1,))[0] != epoch:
            pieces = self._pieces(lane)
            mixed = np.random.default_rng([self.seed, lane, epoch]).permutation(len(pieces))
            self._order[lane] = epoch, [pieces[i] for i in mixed]
        turn = 0
        while place >= len(piece := self._order[lane][1][turn]):
            place -= len(piece)
            turn += 1
        row = np.random.default_rng([self.seed, lane, epoch, turn]).permutation(len(piece))[place]
        return self._read(self._rows_held(piece), piece.start + int(row))

    def _rows_held(self, piece: _RowRange) -> Rows:
        """Return the row group of a piece from a cache of the last used ones, shared by lanes."""
        key = piece.file, piece.group
        if key not in self._held:
            while len(self._held) > len(self._order):
                self._held.popitem(last=False)
            self._held[key] = self._rows(*key)
        self._held.move_to_end(key)
        return self._held[key]

    def _read(self, rows: Rows, row: int) -> Batch:
        targets = tuple(t for t in self.config.targets if t != "vertices" or self.has_vertices)
        return read_example(rows, row, self.size_px, self.margin, targets, self.vertex_count)

    def _rows(self, name: str, group: int, columns: Sequence[str] = COLUMNS) -> Rows:
        if name not in self._files:
            while len(self._files) > max(len(self._order), OPEN_FILES):
                self._files.popitem(last=False)[1].close()
            self._files[name] = pq.ParquetFile(open_file(join(self.url, "data", name)))
        self._files.move_to_end(name)
        file = self._files[name]
        existing = [column for column in columns if column in file.schema_arrow.names]
        return Rows(file.read_row_group(group, columns=existing, use_threads=False))


@dataclass(frozen=True)
class DeferredExamples:
    """Examples to be drawn later, on the network's device."""

    source: int
    numbers: list[int]
    key: Tensor  # (n,)


class Steps(Dataset[list[Batch | DeferredExamples]]):
    """Map a step number to one worker's part of its batch: one `Batch` per source, images at the size of the source.

    With `draw_later` synthetic hands come as an `Order`, which `filled` draws on the network's device.
    """

    def __init__(
        self, config: TrainConfig, hand: HandModel, rank: int = 0, workers: int = 1, draw_later: bool = False
    ) -> None:
        self.config, self.hand, self.rank, self.workers = config, hand, rank, workers
        self.draw_later = draw_later
        self.counts = shares(config.batch_size, [source.share for source in config.data])
        self._opened: dict[int, Synthetic | Stored | Cached] = {}

    def _lanes(self, number: int) -> int:
        return LANES if self._is_drawn_later(number) else self._source(number).lanes

    def _is_drawn_later(self, number: int) -> bool:
        return self.draw_later and self.config.data[number].source == SYNTHETIC

    def _source(self, number: int, device: str | torch.device = "cpu") -> Synthetic | Stored | Cached:
        """Return a source, opened at first use, so that each loader process opens its own files."""
        if number not in self._opened:
            source, crop_px = self.config.data[number], self.config.network.crop_px
            seed = self.config.seed + number
            if source.source == SYNTHETIC:
                self._opened[number] = Synthetic(self.hand, crop_px, source, seed, device)
            elif is_cache(source.source):
                features = self.config.freeze_backbone
                self._opened[number] = Cached(source.source, self.hand, source, seed, features)
            else:
                self._opened[number] = Stored(source.source, self.hand, round(crop_px * MARGIN), source, seed)
        return self._opened[number]

    def check(self) -> None:
        """Open all sources once, so that errors appear before the training starts.

        Raises:
            UserError: a source is missing, or has too few examples for the number of workers.
        """
        for source, count in zip(self.config.data, self.counts, strict=True):
            if not count:
                raise UserError(
                    f"'{source.source}' has too small a share of a batch of {self.config.batch_size}: raise its share "
                    "or batch_size"
                )
        # Numbers alternate between workers, and may skip one where lanes wrap around.
        if self.workers > 1 and max(self.counts) < 2 * self.workers:
            raise UserError(
                f"batch_size {self.config.batch_size} is too small for {self.workers} workers: "
                f"one source must give at least {2 * self.workers} examples per batch"
            )
        for number, source in enumerate(self.config.data):
            if source.source != SYNTHETIC and self._source(number).lanes < self.workers:
                raise UserError(
                    f"'{source.source}' has too few examples for {self.workers} workers: lower --workers"
                )
        self._check_caches()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a loader's process, which maps caches and draws hands itself."""
        stored = {number: one for number, one in self._opened.items() if isinstance(one, Stored)}
        return {**vars(self), "_opened": stored}

    def _check_caches(self) -> None:
        cached = [source.source for source in self.config.data if is_cache(source.source)]
        if not cached:
            return
        for place in cached:
            crop_px = read_cache_info(place).crop_px
            if crop_px != self.config.network.crop_px:
                raise UserError(f"'{place}' holds crops of {crop_px} px: set network.crop_px={crop_px}")
        if not self.config.freeze_backbone:
            return
        if len(cached) < len(self.config.data):
            raise UserError("with freeze_backbone, either all sources are caches or none")
        if self.config.augment.colour or self.config.augment.upright:
            raise UserError(
                f"the features in '{cached[0]}' are those of its crops: "
                "set augment.colour=0 and augment.upright=false"
            )

    def check_features(self, network: Network) -> None:
        """Check that cached features are those of this network's backbone, with the maps it reads.

        Raises:
            UserError: they come from another backbone, or lack maps.
        """
        if not self.config.freeze_backbone:
            return
        for place in (source.source for source in self.config.data if is_cache(source.source)):
            if not measured_by(place, network.backbone):
                raise UserError(
                    f"'{place}' holds the features of another backbone: make it again, or start from its backbone"
                )
            if (
                samples_maps(network.config)
                and read_cache_info(place).features == network.backbone.feature_dim
            ):
                raise UserError(f"'{place}' has no maps, which this network reads: make the cache with maps")

    def __getitem__(self, step: int) -> list[Batch | DeferredExamples]:
        """Return this worker's examples of a step."""
        return self.joined(step, [self.part(step)])

    def _numbers(self, source: int, step: int, loader: int = 0, loaders: int = 1) -> list[int]:
        """Return the numbers of a step's examples that a loader of this worker reads, in order."""
        count, lanes = self.counts[source], self._lanes(source)
        return [
            number
            for number in range(step * count, (step + 1) * count)
            for place, rank in [divmod(number % lanes, self.workers)]
            if rank == self.rank and place % loaders == loader
        ]

    def part(self, step: int, loader: int = 0, loaders: int = 1) -> list[Batch | DeferredExamples | None]:
        """Return a loader's examples of a step by source; None where it has none."""
        return [self._read(source, step, loader, loaders) for source in range(len(self.counts))]

    def _read(self, source: int, step: int, loader: int, loaders: int) -> Batch | DeferredExamples | None:
        numbers = self._numbers(source, step, loader, loaders)
        if not numbers:
            return None
        order = DeferredExamples(source, numbers, keys(self.config.seed, source, step, torch.tensor(numbers)))
        return order if self._is_drawn_later(source) else self._filled(order, "cpu")

    def joined(
        self, step: int, parts: Sequence[Sequence[Batch | DeferredExamples | None]]
    ) -> list[Batch | DeferredExamples]:
        """Return the examples of a step from the parts of all loaders, in the order of one loader's."""
        whole: list[Batch | DeferredExamples] = []
        for source, found in enumerate(zip(*parts, strict=True)):
            batches = [part for part in found if isinstance(part, Batch)]
            orders = [part for part in found if isinstance(part, DeferredExamples)]
            if len(batches) == 1 or len(orders) == 1:
                whole += batches or orders
                continue
            numbers = [n for i in range(len(parts)) for n in self._numbers(source, step, i, len(parts))]
            places = torch.tensor(numbers).argsort()
            if batches:
                whole.append(Batch.join(batches)[places])
            elif orders:
                key = torch.cat([order.key for order in orders])
                whole.append(DeferredExamples(source, sorted(numbers), key[places]))
        return whole

    def filled(self, parts: Sequence[Batch | DeferredExamples], device: torch.device) -> list[Batch]:
        """Move a step's parts to a device and draw the orders there."""
        return [
            self._filled(part, device) if isinstance(part, DeferredExamples) else part.to(device)
            for part in parts
        ]

    def _filled(self, order: DeferredExamples, device: str | torch.device) -> Batch:
        batch = self._source(order.source, device).batch(order.numbers)
        return replace(batch, key=order.key.to(batch.image.device))


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """Split `total` into integers in proportion to the weights (largest remainders)."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(value) for value in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_rest[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _window(groups: list[tuple[str, int, int]], first: int, count: int) -> list[tuple[str, int, int, int]]:
    """Return the row ranges (file, group, start, stop) of examples first ... first + count."""
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
        raise UserError(f"'{url}' is damaged: {first_line(error)}") from None


def _check_hand(url: str, footers: Sequence[pq.ParquetFile], hand: HandModel) -> bool:
    """Return whether these examples have meshes of this hand model."""
    for name in ("image", "is_right", "width", "height"):
        if name not in footers[0].schema_arrow.names:
            raise UserError(
                f"'{url}' holds no training examples (missing column '{name}'): use `amvur convert`"
            )
    facts = [json.loads((footer.schema_arrow.metadata or {}).get(b"amvur", b"{}")) for footer in footers]
    versions = {fact.get("schema_version", SCHEMA_VERSION) for fact in facts}
    if versions != {SCHEMA_VERSION}:
        raise UserError(
            f"'{url}' holds examples of label schema {', '.join(map(str, sorted(versions)))}, but amvur reads schema "
            f"{SCHEMA_VERSION}: convert them again"
        )
    hands = {fact.get("hand") for fact in facts}
    if len(hands) > 1:
        raise UserError(
            f"'{url}' mixes hand models {', '.join(map(str, hands))}: convert each to its own folder"
        )
    return hands == {hand.id}
