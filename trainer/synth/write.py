"""Write synthetic photos and their true labels to files, in this process or as Ray tasks."""

from __future__ import annotations

import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.labels.schema import encode_table, label_schema, write_tables
from annotator.runtime.ordered_tasks import in_order, ray_for_tasks
from annotator.storage.disk_space import DiskFullError
from annotator.storage.files import (
    atomic_local_file,
    check_writable,
    is_local,
    names_in,
    write_atomic,
    write_in_place,
)
from trainer.keyed_random import Draws, keys
from trainer.synth.hands import SyntheticHands
from trainer.synth.truth import true_columns, truth_facts, truth_row

#: Photos per block; blocks are always complete, so that a photo does not depend on the count.
BLOCK = 16

#: Maximum drawing threads.
DRAWERS = 4

JPEG_QUALITY = 92

#: Photos per task and per row group of the truth, at most: some seconds of work, 10 MB of labels.
PHOTOS_AT_ONCE = 512

#: Minimum photos per core for which the seconds of Ray's start are worth it.
MIN_PHOTOS = 256

# Random stream of a hand's side, see `hands.py`.
_SIDE = 99


@dataclass(frozen=True)
class PhotosPlan:
    """All photos of a folder; pickled to other processes."""

    out: str
    seed: int
    size_px: int
    drawers: int  # threads per process

    @property
    def block(self) -> int:
        """Photos drawn together. Blocks are always complete, because rounding may depend on the batch."""
        return max(1, min(BLOCK, BLOCK * 256**2 // self.size_px**2))


def write_photos(
    out: Path,
    count: int,
    seed: int,
    size_px: int,
    *,
    workers: int | None = None,
    address: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write photos, masks and true labels to a folder.

    Files are out/images/000000.jpg ..., out/masks/000000.png ... (255 where the hand is visible) and out/truth.parquet
    (`annotator.labels.schema`). The same seed gives the same files; photo i does not depend on `count`. Files of an
    earlier run are overwritten.

    In the truth, `image_id` is the file name, `image_uri` its path relative to the table, and the crop is the whole
    photo. `box_xyxy` encloses the hand, focal length and principal point are true (`given`), `vertex_rgb` is unlit
    skin, and every std is null. Half of the photos are mirrored: left hands. Some are cut from a wide-angle photo:
    their principal point is not their centre.

    Args:
        out: a folder; with `address`, one that all machines of the cluster share.
        count: number of photos. seed: of all draws. size_px: side of a photo.
        workers: maximum of Ray tasks at once; 1 uses this process alone. Default: this process, with several threads,
            or all cores for many photos.
        address: a Ray cluster, as for `annotator.runtime.ray_session.connected`.
        on_progress: called with the numbers of finished and of all photos.

    Raises:
        UserError: the folder can't be written, or holds other files.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative: give 0 or more")
    if not is_local(str(out)) or ":/" in str(out):
        raise UserError(
            f"'{out}' is a URL: write synthetic photos to a local folder, then convert them to the URL"
        )
    check_folder(out, {_name(index) for index in range(count)})
    check_writable(str(out))
    as_tasks = draws_as_tasks(count, workers, address)
    drawers = 1 if as_tasks else min(DRAWERS, os.cpu_count() or 1)
    plan = PhotosPlan(str(out.absolute()), seed, size_px, drawers)
    hand = load_hand("open")
    schema = label_schema(hand.vertex_count, {"amvur": truth_facts(hand, seed, size_px)})

    def written() -> Iterator[pa.Table]:
        step, done = max(1, PHOTOS_AT_ONCE // plan.block) * plan.block, 0
        parts = [(range(first, min(first + step, count)),) for first in range(0, count, step)]
        for table in in_order(write_part, plan, parts, as_tasks, workers):
            done += len(table)
            on_progress(done, count)
            yield table

    with writing_to(out), ray_for_tasks(as_tasks, [plan.out], address):
        write_truth(out, written(), schema)


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Raise a `UserError` with the folder's name for errors of the disk within the block."""
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        raise UserError(f"can't write to '{out}': {error.strerror or error}") from None


def write_truth(out: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    """Write OUT/truth.parquet; each table is taken after its photos are written."""
    # An empty truth marks the folder as synthetic until all photos are written.
    write_atomic(str(out / "truth.parquet"), encode_table(schema.empty_table()))
    (out / "images").mkdir(exist_ok=True)
    (out / "masks").mkdir(exist_ok=True)
    with atomic_local_file(out / "truth.parquet") as file:
        write_tables(file, tables, schema)


def draws_as_tasks(count: int, workers: int | None, address: str | None) -> bool:
    """Return whether to draw photos as Ray tasks: on request, or if that is faster."""
    if workers is not None or address is not None:
        return workers != 1
    cores = os.cpu_count() or 1
    return cores > DRAWERS and count >= MIN_PHOTOS * cores


def _name(index: int) -> str:
    return f"{index:06d}.jpg"


def write_part(plan: PhotosPlan, numbers: range) -> pa.Table:
    """Write photos and masks with these numbers, and return their labels."""
    out, schema, tables = Path(plan.out), _drawer(plan.seed, plan.size_px).schema, []
    for index, (photo, mask, columns) in zip(numbers, _photos(plan, numbers), strict=True):
        name = _name(index)
        write_photo(out, name, photo, mask)
        tables.append(truth_row(name, columns, plan.size_px, schema))
    return pa.concat_tables(tables).combine_chunks()


#: A photo (H, W, 3), its hand's mask (H, W), and the label columns of the hand.
_Drawn = tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, Any]]


class _Drawer:
    """Draws photos of one seed and size."""

    def __init__(self, seed: int, size_px: int) -> None:
        hand = load_hand("open")
        self.seed, self.size_px = seed, size_px
        self.schema = label_schema(hand.vertex_count)
        self._hands = SyntheticHands(hand, size_px, seed)

    def block(self, first: int, count: int) -> list[_Drawn]:
        """Draw `count` photos from number `first` on."""
        index = torch.arange(first, first + count)
        photos = self._hands.photos(index)
        is_right = Draws(keys(self.seed, _SIDE, index)).chance(0.5)
        both = torch.cat([photos.image, photos.hand_mask], 1)
        both = torch.where(is_right[:, None, None, None], both, both.flip(-1))
        columns = true_columns(photos, self._hands, is_right, self.size_px)
        pixels, masks = both[:, :3].permute(0, 2, 3, 1).numpy(), both[:, 3].numpy()
        return [(pixels[i], masks[i], {k: _row(v, i) for k, v in columns.items()}) for i in range(count)]


@lru_cache(maxsize=1)
def _drawer(seed: int, size_px: int) -> _Drawer:
    return _Drawer(seed, size_px)


def _photos(plan: PhotosPlan, numbers: range) -> Iterator[_Drawn]:
    """Yield the photos with these numbers, which start with a block."""
    block, drawer = plan.block, _drawer(plan.seed, plan.size_px)
    # One block per thread: torch's own threads would wait for each other at every small step.
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(plan.drawers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        # Drawing is faster than writing, so it stays only a few blocks ahead.
        waiting: deque[tuple[int, Future[list[_Drawn]]]] = deque()

        def taken() -> Iterator[_Drawn]:
            first, drawn = waiting.popleft()
            yield from drawn.result()[: numbers.stop - first]

        try:
            for first in range(numbers.start, numbers.stop, block):
                waiting.append((first, pool.submit(drawer.block, first, block)))
                if len(waiting) > 2 * plan.drawers:
                    yield from taken()
            while waiting:
                yield from taken()
        finally:
            for _, one in waiting:
                one.cancel()
            torch.set_num_threads(threads)


def _row(values: Any, i: int) -> Any:
    """Return row i of a column or of a struct of columns; None stays None."""
    if isinstance(values, dict):
        return {name: _row(column, i) for name, column in values.items()}
    return None if values is None else values[i : i + 1]


def write_photo(out: Path, name: str, photo: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    """Write a photo (H, W, 3) to OUT/images and its hand's mask (H, W) to OUT/masks."""
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(photo).save(jpeg, "JPEG", quality=JPEG_QUALITY)
    Image.fromarray(mask).save(png, "PNG")
    write_in_place(out / "images" / name, jpeg.getvalue())
    write_in_place((out / "masks" / name).with_suffix(".png"), png.getvalue())


def check_folder(out: Path, names: set[str]) -> None:
    """Raise if the folder has files that are not from an earlier run of this command."""
    if not names_in(str(out)):
        return
    if not _is_truth(out / "truth.parquet"):
        raise UserError(f"'{out}' holds other files than synthetic photos: give an empty or a new folder")
    others = len(names_in(str(out / "images")) - names)
    if others:
        raise UserError(
            f"'{out / 'images'}' holds {others} files that are not among these {len(names)} photos: "
            "give an empty or a new folder"
        )


def _is_truth(path: Path) -> bool:
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return False
    return "synthetic" in json.loads(metadata.get(b"amvur", b"{}"))
