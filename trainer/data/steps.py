"""Choose the examples of each step, and read only those.

A step's examples depend only on the configuration, the seed and the step number. So a resumed run, or a run on more
workers, reads the same examples as one worker without a stop. A collection is cut into lanes of equal length; example
number n of a source comes from lane n % LANES. Worker r of W reads the lanes l with l % W = r; its loaders
(`loaders.py`) share those out again. Workers and loaders share only the row groups at the edges of lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from annotator.errors import UserError
from annotator.hand.model import HandModel
from annotator.model.network import Network
from trainer.batch import Batch, withhold
from trainer.config import SYNTHETIC, SourceConfig, TrainConfig
from trainer.data.cache import CachedExamples, is_cache, measured_by, read_cache_info
from trainer.data.features import samples_maps
from trainer.data.stored import LANES, MARGIN, StoredExamples
from trainer.keyed_random import keys


class SyntheticExamples:
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


@dataclass(frozen=True)
class DeferredExamples:
    """Examples to be drawn later, on the network's device."""

    source: int
    numbers: list[int]
    key: Tensor  # (n,)


class Steps(Dataset[list[Batch | DeferredExamples]]):
    """Map a step number to one worker's part of its batch: one `Batch` per source, images at the size of the source.

    With `draw_later` synthetic hands are `DeferredExamples`, which `filled` draws on the network's device.
    """

    def __init__(
        self, config: TrainConfig, hand: HandModel, rank: int = 0, workers: int = 1, draw_later: bool = False
    ) -> None:
        self.config, self.hand, self.rank, self.workers = config, hand, rank, workers
        self.draw_later = draw_later
        self.counts = shares(config.batch_size, [source.share for source in config.data])
        self._opened: dict[int, SyntheticExamples | StoredExamples | CachedExamples] = {}

    def _lanes(self, number: int) -> int:
        return LANES if self._is_drawn_later(number) else self._source(number).lanes

    def _is_drawn_later(self, number: int) -> bool:
        return self.draw_later and self.config.data[number].source == SYNTHETIC

    def _source(
        self, number: int, device: str | torch.device = "cpu"
    ) -> SyntheticExamples | StoredExamples | CachedExamples:
        """Return a source, opened at first use, so that each loader process opens its own files."""
        if number not in self._opened:
            source, crop_px = self.config.data[number], self.config.network.crop_px
            seed = self.config.seed + number
            if source.source == SYNTHETIC:
                self._opened[number] = SyntheticExamples(self.hand, crop_px, source, seed, device)
            elif is_cache(source.source):
                features = self.config.freeze_backbone
                self._opened[number] = CachedExamples(source.source, self.hand, source, seed, features)
            else:
                self._opened[number] = StoredExamples(
                    source.source, self.hand, round(crop_px * MARGIN), source, seed
                )
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
        stored = {number: one for number, one in self._opened.items() if isinstance(one, StoredExamples)}
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
            for index, rank in [divmod(number % lanes, self.workers)]
            if rank == self.rank and index % loaders == loader
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
            order_read = torch.tensor(numbers).argsort()
            if batches:
                whole.append(Batch.join(batches)[order_read])
            elif orders:
                key = torch.cat([order.key for order in orders])
                whole.append(DeferredExamples(source, sorted(numbers), key[order_read]))
        return whole

    def filled(self, parts: Sequence[Batch | DeferredExamples], device: torch.device) -> list[Batch]:
        """Move a step's parts to a device and draw the deferred examples there."""
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
