"""Synthetic hands on disk, once for many trainings: crops, targets, and the features that a frozen backbone gives them.

    FOLDER/cache.json   how the hands were drawn, and how many are done
    FOLDER/*.npy        one array per field, memory-mapped

Each hand is drawn, cut and coloured as in a training, then kept: a training on the cache sees the same crops in every
epoch. With `freeze_backbone` it also gets the stored features in place of a backbone's forward pass. Any other
training, or evaluation of another backbone, gets the crops alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from annotator.coordinates import CropFrame
from annotator.errors import UserError
from annotator.hand.model import HandModel
from annotator.model.backbone import Backbone
from annotator.storage.files import is_local, local_path
from trainer.batch import Batch, withhold
from trainer.config import SourceConfig
from trainer.data.features import digest
from trainer.data.read import Facts

CACHE_FILE = "cache.json"

#: Fields of a batch as stored; all others follow, because synthetic hands have every target without error.
FLOATS = ("joints2d", "joints3d_mm", "vertices_mm", "ray", "half_side_tan")
FLAGS = ("joint_visible", "has_joint_visible")


@dataclass(frozen=True)
class CacheInfo:
    """The header of a cache: its hands depend on nothing else."""

    count: int
    crop_px: int
    seed: int
    hand: str  # id of the hand model
    backbone: str = ""  # digest of its weights; empty = no features
    features: int = 0  # numbers per hand
    augment: str = ""  # how crops were cut and coloured
    done: int = 0


def is_cache(place: str) -> bool:
    """Return whether a folder holds a cache."""
    return is_local(place) and (local_path(place) / CACHE_FILE).is_file()


def read_cache_info(place: str) -> CacheInfo:
    """Read the header of a cache.

    Raises:
        UserError: the header is damaged.
    """
    path = local_path(place) / CACHE_FILE
    try:
        return CacheInfo(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"'{path}' is damaged: delete the folder and make the cache again") from None


class CachedExamples:
    """Hands of a cache, in a different order every epoch."""

    def __init__(self, place: str, hand: HandModel, config: SourceConfig, seed: int, features: bool) -> None:
        """Map the files of a cache; with `features`, batches hold them.

        Raises:
            UserError: the cache is unfinished, of another hand model, or lacks features.
        """
        self.place, self.config, self.seed = place, config, seed
        self.info = read_cache_info(place)
        if self.info.done < self.info.count:
            raise UserError(
                f"'{place}' is an unfinished cache, {self.info.done} of {self.info.count} hands: make it again"
            )
        if self.info.hand != hand.id:
            raise UserError(
                f"'{place}' was made with hand model {self.info.hand}, not {hand.id}: give its --hand, or make it again"
            )
        if features and not self.info.features:
            raise UserError(
                f"'{place}' holds no features, which freeze_backbone reads: make it with a backbone"
            )
        self.places = (str(local_path(place).absolute()),)
        self._names = ("image", "hand_mask", *FLOATS, *FLAGS, *(["features"] if features else []))
        self._arrays = self._mapped()
        self.total = max(min(config.count or self.info.count, self.info.count - config.first), 0)
        if not self.total:
            raise UserError(f"'{place}' has no hands from number {config.first} on: lower `first`")
        self.lanes = self.total
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, int))

    def _mapped(self) -> dict[str, np.memmap[Any, Any]]:
        return {name: np.load(f"{self.places[0]}/{name}.npy", mmap_mode="r") for name in self._names}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for other processes, which map the files themselves."""
        return vars(self) | {"_arrays": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the files."""
        vars(self).update(state)
        self._arrays = self._mapped()

    def __len__(self) -> int:
        return self.total

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return the examples with these numbers."""
        return self._rows([self._row(number) for number in numbers])

    def in_order(self, size: int, rows: range | None = None) -> Iterator[tuple[Batch, list[Facts]]]:
        """Yield hands once in batches with their facts; `rows` are their indices in the window, default all."""
        side = self.info.crop_px / 2
        whole = CropFrame(np.full(2, side), np.float64(side), np.bool_(False))
        numbers = range(self.config.first, self.config.first + self.total)
        numbers = numbers if rows is None else numbers[rows.start : rows.stop]
        for start in range(0, len(numbers), size):
            part = list(numbers[start : start + size])
            yield self._rows(part), [Facts(f"hand-{row}", whole, row, None, None) for row in part]

    def _row(self, number: int) -> int:
        epoch, place = divmod(number, self.total)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.total)
        return self.config.first + int(self._order[1][place])

    def _rows(self, rows: list[int]) -> Batch:
        side, count = self.info.crop_px, len(rows)
        # Sorted reads are sequential on disk.
        found = {name: torch.from_numpy(np.array(array[rows])) for name, array in self._arrays.items()}
        bits = np.unpackbits(found["hand_mask"].numpy(), axis=1, count=side * side)
        yes = torch.ones(count, dtype=torch.bool)
        batch = replace(
            Batch.empty(count, 0, found["vertices_mm"].shape[1]),
            **found | {"hand_mask": torch.from_numpy(bits * 255).view(count, 1, side, side)},
            key=torch.tensor(rows),
            has_joints2d=yes[:, None].expand(-1, 21).clone(),
            has_joints3d=yes,
            has_vertices=yes,
            has_hand_mask=yes,
        )
        return withhold(batch, self.config.targets)


def measured_by(place: str, backbone: Backbone) -> bool:
    """Return whether a cache's features come from this backbone."""
    with suppress(UserError):
        return read_cache_info(place).backbone == digest(backbone)
    return False
