"""Synthetic hands on disk, once for many trainings: crops, targets, and the features that a frozen backbone gives them.

    FOLDER/cache.json   how the hands were drawn, and how many are done
    FOLDER/*.npy        one array per field, memory-mapped

Each hand is drawn, cut and coloured as in a training, then kept: a training on the cache sees the same crops in every
epoch. With `freeze_backbone` it also gets the stored features in place of a backbone's forward pass. Any other
training, or evaluation of another backbone, gets the crops alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from annotator.coordinates import CropFrame
from annotator.errors import UserError
from annotator.hand.model import HandModel
from annotator.model.backbone import Backbone
from annotator.storage.files import is_local, local_path, write_atomic
from trainer.augment import prepare
from trainer.batch import Batch, withhold
from trainer.config import AugmentConfig, SourceConfig
from trainer.data.features import digest, packed, row_size
from trainer.data.read import Facts
from trainer.keyed_random import keys

CACHE_FILE = "cache.json"

#: Hands drawn at once, which bounds memory; a killed drawing repeats at most this many.
CHUNK = 32

#: Separates the random numbers of cutting and colouring from those of drawing.
_PREPARATION = 1

#: Fields of a batch as stored; all others follow, because synthetic hands have every target without error.
_FLOATS = ("joints2d", "joints3d_mm", "vertices_mm", "ray", "half_side_tan")
_FLAGS = ("joint_visible", "has_joint_visible")


@dataclass(frozen=True)
class CacheInfo:
    """The header of a cache: its hands depend on nothing else."""

    count: int
    crop_px: int
    seed: int
    hand: str  # id of the hand model
    backbone: str = ""  # digest of its weights; empty = no features
    features: int = 0  # numbers per hand
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


def fill_cache(
    place: str,
    count: int,
    crop_px: int,
    seed: int,
    hand: HandModel,
    augment: AugmentConfig,
    backbone: Backbone | None = None,
    maps: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Draw hands into a folder; an unfinished cache resumes, a finished one of the same kind is left as it is.

    Args:
        place: a local folder.
        count: number of hands. crop_px: side of their crops.
        seed: of the synthetic hands.
        augment: how crops are cut and coloured.
        backbone: gives the features; None for crops alone.
        maps: also store the backbone's maps (`features.samples_maps`).
        on_progress: called with hands done and their total.

    Raises:
        UserError: the folder is not local, or holds a cache of another kind.
    """
    from trainer.synth import SyntheticHands  # not needed to read a cache

    if not is_local(place):
        raise UserError(f"'{place}' is not a local folder, which a memory-mapped cache needs")
    size = 0 if backbone is None else row_size(backbone, crop_px, maps)
    wanted = CacheInfo(count, crop_px, seed, hand.id, digest(backbone) if backbone else "", size)
    info = read_cache_info(place) if is_cache(place) else wanted
    if replace(info, done=0) != wanted:
        raise UserError(f"'{place}' holds a cache of another kind: give another folder, or delete it")
    folder = local_path(place)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = _arrays(folder, wanted, hand.vertex_count, new=not is_cache(place))
    hands = SyntheticHands(hand, crop_px, seed)
    if backbone is not None:
        backbone.eval()
    for start in range(info.done, count, CHUNK):
        rows = slice(start, min(start + CHUNK, count))
        indices = torch.arange(rows.start, rows.stop)
        with torch.inference_mode():
            drawn = hands.batch(indices)
            drawn = replace(drawn, key=keys(seed, _PREPARATION, indices))
            images, batch = prepare(drawn, crop_px, 1.0, augment)
            stored = (images * 255).round().byte()
            seen = None if backbone is None else packed(backbone(stored.float() / 255), maps)
        _put(arrays, rows, stored, batch, seen)
        write_atomic(str(folder / CACHE_FILE), json.dumps(asdict(replace(wanted, done=rows.stop))).encode())
        on_progress(rows.stop, count)


def _arrays(folder: Path, info: CacheInfo, vertex_count: int, new: bool) -> dict[str, np.memmap[Any, Any]]:
    side = info.crop_px
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "image": ((3, side, side), np.uint8),
        "hand_mask": ((side * side + 7 >> 3,), np.uint8),  # one bit per pixel
        "joints2d": ((21, 2), np.float32),
        "joints3d_mm": ((21, 3), np.float32),
        "vertices_mm": ((vertex_count, 3), np.float32),
        "ray": ((2,), np.float32),
        "half_side_tan": ((), np.float32),
        **dict.fromkeys(_FLAGS, ((21,), np.bool_)),
    }
    if info.features:
        shapes["features"] = (info.features,), np.float16
    mode = "w+" if new else "r+"
    return {
        name: open_memmap(folder / f"{name}.npy", mode, dtype, (info.count, *shape))
        for name, (shape, dtype) in shapes.items()
    }


def _put(
    arrays: dict[str, np.memmap[Any, Any]], rows: slice, images: Tensor, batch: Batch, seen: Tensor | None
) -> None:
    arrays["image"][rows] = images.numpy()
    arrays["hand_mask"][rows] = np.packbits(batch.hand_mask.flatten(1).numpy() > 127, axis=1)
    for name in (*_FLOATS, *_FLAGS):
        arrays[name][rows] = getattr(batch, name).numpy()
    if seen is not None:
        arrays["features"][rows] = seen.numpy()
    for array in arrays.values():
        array.flush()


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
        self._names = ("image", "hand_mask", *_FLOATS, *_FLAGS, *(["features"] if features else []))
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
