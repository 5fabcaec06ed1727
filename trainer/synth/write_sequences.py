"""Sequences of photos of moving hands with their true motion, as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.labels.schema import encode_table, label_schema, labels_to_table, write_tables
from annotator.storage.files import check_writable, whole_file, write_whole
from trainer.synth.sequences import Sequences
from trainer.synth.write import check_folder, jpeg_bytes, true_columns, truth_facts

#: Columns of the list of frames beside boxes, and of the truth beside those of labels.
SEQUENCE_COLUMNS = {"sequence": pa.string(), "frame": pa.int32(), "time_s": pa.float64()}


def write_sequences(out: Path, sequences: int, frames: int, seed: int, size_px: int) -> None:
    """Write out/images/s0000-f0000.jpg ..., out/masks/ likewise, out/truth.parquet and out/frames.csv.

    The truth is as `write_photos` has it, with the columns `sequence`, `frame` and `time_s`. The list holds the same
    with the true box of each hand: `amvur annotate out/frames.csv` labels it. The same seed gives the same files.

    Raises:
        UserError: the folder can't be written, or holds something else.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative: give 0 or more")
    names = [[f"s{s:04d}-f{f:04d}.jpg" for f in range(frames)] for s in range(sequences)]
    check_folder(out, {name for of_one in names for name in of_one})
    check_writable(str(out))
    hand = load_hand("open")
    facts = {"amvur": truth_facts(hand, seed, size_px)}
    schema = label_schema(hand.vertex_count, facts, SEQUENCE_COLUMNS)
    source = Sequences(hand, size_px, seed)
    listed: list[dict[str, Any]] = []

    def written() -> Iterator[pa.Table]:
        for number, of_one in enumerate(names):
            table = _written(out, source, number, of_one, schema)
            listed.extend(_listed(row) for row in table.select(_LISTED).to_pylist())
            yield table

    try:
        # A truth without rows marks the folder as ours until its photos are all there.
        write_whole(str(out / "truth.parquet"), encode_table(schema.empty_table()))
        (out / "images").mkdir(exist_ok=True)
        (out / "masks").mkdir(exist_ok=True)
        with whole_file(out / "truth.parquet") as file:
            write_tables(file, written(), schema)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(listed[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)
        write_whole(str(out / "frames.csv"), text.getvalue().encode())
    except OSError as error:
        raise UserError(f"can't write to '{out}': {error.strerror or error}") from None


_LISTED = ["image_uri", "box_xyxy", *SEQUENCE_COLUMNS]


def _listed(row: dict[str, Any]) -> dict[str, Any]:
    box = {
        name: round(value, 2) for name, value in zip(("x1", "y1", "x2", "y2"), row["box_xyxy"], strict=True)
    }
    return {"path": row["image_uri"], **box, **{name: row[name] for name in SEQUENCE_COLUMNS}}


def _written(out: Path, source: Sequences, number: int, names: list[str], schema: pa.Schema) -> pa.Table:
    """Write the photos of a sequence and return their true labels."""
    drawn = source.sequence(number, len(names))
    photos, size_px = drawn.photos, source.hands.size_px
    is_right = torch.full((len(names),), drawn.is_right)
    columns = true_columns(photos, source.hands, is_right, size_px)
    images, masks = photos.image, photos.hand_mask
    if not drawn.is_right:
        images, masks = images.flip(-1), masks.flip(-1)
    for name, image, mask in zip(names, images.permute(0, 2, 3, 1).numpy(), masks[:, 0].numpy(), strict=True):
        (out / "images" / name).write_bytes(jpeg_bytes(np.ascontiguousarray(image)))
        Image.fromarray(mask).save((out / "masks" / name).with_suffix(".png"))
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
