"""Draw synthetic hands into a cache, in one process or several; `cache.py` reads it.

Each hand follows from the cache's header and its number alone, so the number of processes changes no file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from annotator.errors import UserError
from annotator.hand.model import HandModel
from annotator.model.backbone import Backbone
from annotator.runtime.process_pool import process_pool
from annotator.storage.files import is_local, local_path, write_atomic
from trainer.augment import prepare
from trainer.batch import Batch
from trainer.config import AugmentConfig
from trainer.data.cache import CACHE_FILE, FLAGS, FLOATS, CacheInfo, is_cache, read_cache_info
from trainer.data.features import digest, packed, row_size
from trainer.keyed_random import keys
from trainer.synth import SyntheticHands

#: Hands drawn at once, which bounds memory.
CHUNK = 32

#: Separates the random numbers of cutting and colouring from those of drawing.
_PREPARATION = 1

#: The drawing of this process, if it is one of several.
_drawing: _Drawing


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
    processes: int = 1,
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
        processes: processes that draw; a kill repeats the chunks after the first unfinished one.

    Raises:
        UserError: the folder is not local, or holds a cache of another kind.
    """
    if not is_local(place):
        raise UserError(f"'{place}' is not a local folder, which a memory-mapped cache needs")
    size = 0 if backbone is None else row_size(backbone, crop_px, maps)
    wanted = CacheInfo(
        count,
        crop_px,
        seed,
        hand.id,
        digest(backbone) if backbone else "",
        size,
        json.dumps(asdict(augment), sort_keys=True),
    )
    info = read_cache_info(place) if is_cache(place) else wanted
    if replace(info, done=0) != wanted:
        raise UserError(f"'{place}' holds a cache of another kind: give another folder, or delete it")
    folder = local_path(place)
    folder.mkdir(parents=True, exist_ok=True)
    if not is_cache(place):
        _arrays(folder, wanted, hand.vertex_count, new=True)
    if backbone is not None:
        backbone.eval()
    drawing = _Drawing(folder, wanted, hand, augment, backbone, maps)
    with _written(drawing, range(info.done, count, CHUNK), processes) as ends:
        for done in ends:
            write_atomic(str(folder / CACHE_FILE), json.dumps(asdict(replace(wanted, done=done))).encode())
            on_progress(done, count)


@dataclass(frozen=True)
class _Drawing:
    """All that a process needs to draw any chunk of a cache."""

    folder: Path
    info: CacheInfo
    hand: HandModel
    augment: AugmentConfig
    backbone: Backbone | None
    maps: bool

    @cached_property
    def _hands(self) -> SyntheticHands:
        return SyntheticHands(self.hand, self.info.crop_px, self.info.seed)

    @cached_property
    def _files(self) -> dict[str, np.memmap[Any, Any]]:
        return _arrays(self.folder, self.info, self.hand.vertex_count, new=False)

    @torch.inference_mode()
    def write(self, start: int) -> int:
        """Draw the chunk from hand number `start` on, write it, and return its end."""
        rows = slice(start, min(start + CHUNK, self.info.count))
        indices = torch.arange(rows.start, rows.stop)
        drawn = replace(self._hands.batch(indices), key=keys(self.info.seed, _PREPARATION, indices))
        images, batch = prepare(drawn, self.info.crop_px, 1.0, self.augment)
        stored = (images * 255).round().byte()
        seen = None
        if self.backbone is not None:
            seen = packed(self.backbone(stored.float() / 255), self.maps)
        _put(self._files, rows, stored, batch, seen)
        return rows.stop


@contextmanager
def _written(drawing: _Drawing, starts: Iterable[int], processes: int) -> Iterator[Iterator[int]]:
    """Write chunks, in this process or in others of one thread each, and yield their ends in order."""
    if processes == 1:
        yield map(drawing.write, starts)
        return
    pool = process_pool(processes, _start_process, drawing)
    try:
        yield pool.map(_write_chunk, starts)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process(drawing: _Drawing) -> None:
    """Keep the drawing of a new process."""
    global _drawing
    torch.set_num_threads(1)
    _drawing = drawing


def _write_chunk(start: int) -> int:
    return _drawing.write(start)


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
        **dict.fromkeys(FLAGS, ((21,), np.bool_)),
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
    for name in (*FLOATS, *FLAGS):
        arrays[name][rows] = getattr(batch, name).numpy()
    if seen is not None:
        arrays["features"][rows] = seen.numpy()
    for array in arrays.values():
        array.flush()
