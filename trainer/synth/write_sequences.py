"""Write sequences of photos of moving hands and their true motion to files, in this process or as Ray tasks."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.labels.schema import label_schema, labels_to_table
from annotator.runtime.ordered_tasks import in_order, ray_for_tasks
from annotator.storage.files import check_writable, write_atomic
from trainer.synth.sequences import Sequences
from trainer.synth.truth import true_columns, truth_facts
from trainer.synth.write import check_folder, write_photo, write_truth, writing_to

#: Columns of the list of frames beside boxes, and of the truth beside those of labels.
SEQUENCE_COLUMNS = {"sequence": pa.string(), "frame": pa.int32(), "time_s": pa.float64()}


@dataclass(frozen=True)
class SequencesPlan:
    """All sequences of a folder; pickled to other processes."""

    out: str
    frames: int
    seed: int
    size_px: int


def write_sequences(
    out: Path,
    sequences: int,
    frames: int,
    seed: int,
    size_px: int,
    *,
    workers: int | None = None,
    address: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write out/images/s0000-f0000.jpg ..., out/masks/ likewise, out/truth.parquet and out/frames.csv.

    The truth is as `write_photos` has it, with the columns `sequence`, `frame` and `time_s`. The list holds the same
    with the true box of each hand: `amvur annotate out/frames.csv` labels it. The same seed gives the same files.

    `workers` (default 1, this process) is the maximum of Ray tasks at once, `address` a Ray cluster;
    `on_progress` is called with the numbers of finished and of all sequences.

    Raises:
        UserError: the folder can't be written, or holds something else.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative: give 0 or more")
    check_folder(out, {name for number in range(sequences) for name in _names(number, frames)})
    check_writable(str(out))
    as_tasks = workers != 1 and (workers is not None or address is not None)
    plan = SequencesPlan(str(out.absolute()), frames, seed, size_px)
    hand = load_hand("open")
    facts = {"amvur": truth_facts(hand, seed, size_px)}
    schema = label_schema(hand.vertex_count, facts, SEQUENCE_COLUMNS)
    listed: list[dict[str, Any]] = []

    def written() -> Iterator[pa.Table]:
        numbers = [(number,) for number in range(sequences)]
        for done, table in enumerate(in_order(write_sequence, plan, numbers, as_tasks, workers), 1):
            listed.extend(_listed(row) for row in table.select(_LISTED).to_pylist())
            on_progress(done, sequences)
            yield table

    with writing_to(out):
        with ray_for_tasks(as_tasks, [plan.out], address):
            write_truth(out, written(), schema)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(listed[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)
        write_atomic(str(out / "frames.csv"), text.getvalue().encode())


_LISTED = ["image_uri", "box_xyxy", *SEQUENCE_COLUMNS]


def _listed(row: dict[str, Any]) -> dict[str, Any]:
    box = {
        name: round(value, 2) for name, value in zip(("x1", "y1", "x2", "y2"), row["box_xyxy"], strict=True)
    }
    return {"path": row["image_uri"], **box, **{name: row[name] for name in SEQUENCE_COLUMNS}}


def _names(number: int, frames: int) -> list[str]:
    return [f"s{number:04d}-f{frame:04d}.jpg" for frame in range(frames)]


@lru_cache(maxsize=1)
def _source(seed: int, size_px: int) -> Sequences:
    return Sequences(load_hand("open"), size_px, seed)


def write_sequence(plan: SequencesPlan, number: int) -> pa.Table:
    """Write the photos of a sequence and return their true labels."""
    out, size_px, names = Path(plan.out), plan.size_px, _names(number, plan.frames)
    source = _source(plan.seed, size_px)
    schema = label_schema(source.hands.figure.vertex_count, passed=SEQUENCE_COLUMNS)
    drawn = source.sequence(number, plan.frames)
    photos = drawn.photos
    is_right = torch.full((len(names),), drawn.is_right)
    columns = true_columns(photos, source.hands, is_right, size_px)
    images, masks = photos.image, photos.hand_mask
    if not drawn.is_right:
        images, masks = images.flip(-1), masks.flip(-1)
    for name, image, mask in zip(names, images.permute(0, 2, 3, 1).numpy(), masks[:, 0].numpy(), strict=True):
        write_photo(out, name, np.ascontiguousarray(image), mask)
    rows = [
        {
            "image_uri": f"images/{name}",
            "image_id": name,
            "hand_index": 0,
            "status": "ok",
            "box_source": "list",
        }
        | {"width": size_px, "height": size_px, "sequence": f"s{number:04d}"}
        | {"frame": frame, "time_s": float(drawn.time_s[frame])}
        for frame, name in enumerate(names)
    ]
    return labels_to_table(rows, columns, range(len(rows)), schema)
