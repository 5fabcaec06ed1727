"""What a label costs on disk, by how it is encoded: `python benchmarks/encodings.py [PHOTOS]`.

Labels some photos, then writes their labels again in other ways. For each: bytes a hand in all, and without meshes; how
far rounding moved anything, millimetres; milliseconds of one core to write and to read a hand; and which programs read
the meshes and colours as they are. The last line is the whole table as JSON.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine, photo_folder, tell

import annotator
from annotator.hand import load_hand
from annotator.job.resources import ComputeOptions
from annotator.labels.schema import encode_table, label_schema, labels_to_table
from annotator.photos.crops import Crops, crop_photo
from annotator.photos.decode import decode_photo, read_photo
from annotator.sources import open_source

MESH = ("vertices_mm", "vertices_std_mm", "vertex_rgb", "vertex_visible")
BIG = ("vertices_mm", "vertices_std_mm")
RGB = "vertex_rgb.list.element.list.element"
REPEAT = 5


@dataclass
class Encoding:
    """A way to write labels."""

    name: str
    cast: Callable[[str, np.ndarray], np.ndarray] = lambda name, values: values  # before any rounding of ours
    write: dict[str, Any] = field(default_factory=dict)  # of pyarrow; empty: as `amvur` writes
    split: tuple[str, ...] = ()
    mm: float = 1.0  # what one of its units is


def rounded(name: str, values: np.ndarray) -> np.ndarray:
    """As labels are."""
    step = np.float32({"vertices_mm": 1 / 16, "vertices_std_mm": 1 / 8}.get(name, 0))
    return np.rint(values / step) * step if step else values


def half(name: str, values: np.ndarray) -> np.ndarray:
    """Half floats."""
    return values.astype(np.float16) if name in BIG else values


def sixteenths(name: str, values: np.ndarray) -> np.ndarray:
    """Whole numbers of sixteenths of a millimetre."""
    return np.rint(values * 16).astype(np.int16) if name in BIG else values


ENCODINGS = (
    Encoding("float32 as pyarrow writes it", write={"compression": "snappy"}),
    Encoding("float32, split, zstd 1", write={"compression": "zstd"}, split=BIG),
    Encoding("rounded, zstd 1", rounded, {"compression": "zstd", "use_dictionary": False}),
    Encoding("rounded, split, zstd 1", rounded, {"compression": "zstd"}, BIG),
    Encoding("**rounded, split, colours as a dictionary, zstd 5: ours**"),
    Encoding("rounded, split, zstd 9", rounded, {"compression": "zstd", "compression_level": 9}, BIG),
    Encoding(
        "rounded, colours split, too, zstd 5",
        rounded,
        {"compression": "zstd", "compression_level": 5},
        (*BIG, "vertex_rgb"),
    ),
    Encoding("half floats, split, zstd 5", half, {"compression": "zstd", "compression_level": 5}, BIG),
    Encoding(
        "int16 of 1/16 mm, zstd 5", sixteenths, {"compression": "zstd", "compression_level": 5}, mm=1 / 16
    ),
)


def columns_of(photos: Path, count: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and hands of the first photos, nothing rounded."""
    predictor = annotator.load("default", device="cpu")
    crop_px, margin = predictor.checkpoint.cut_px, predictor.checkpoint.cut_margin
    cut, rows = [], []
    for entry, _ in zip(open_source(str(photos)), range(count), strict=False):
        photo = decode_photo(read_photo(entry.path), min_side_px=crop_px)
        cut.append(crop_photo(photo.pixels, photo.width, photo.height, crop_px, margin=margin))
        rows.append({"image_uri": entry.uri, "image_id": entry.id, "hand_index": 0, "status": "ok"})
    return rows, predictor.predict_crops(Crops.stack(cut))


def table_of(rows: list[dict[str, Any]], hands: dict[str, Any], encoding: Encoding) -> pa.Table:
    """A label table whose big columns are as the encoding has them."""
    table = labels_to_table(rows, hands, range(len(rows)), label_schema(load_hand("open").vertex_count))
    if not encoding.write:
        return table
    for name in (*BIG, "vertex_rgb"):
        values = encoding.cast(
            name, np.asarray(hands[name]).astype(np.uint8 if name == "vertex_rgb" else np.float32)
        )
        array = pa.array(values.reshape(-1))
        for size in reversed(values.shape[1:]):
            array = pa.FixedSizeListArray.from_arrays(array, size)
        at = table.schema.get_field_index(name)
        table = table.set_column(at, pa.field(name, array.type), array)
    return table


def encoded(table: pa.Table, encoding: Encoding) -> bytes:
    """The file's bytes."""
    if not encoding.write:
        return encode_table(table)
    sink = io.BytesIO()
    split = [f"{name}.list.element.list.element" for name in encoding.split]
    options = dict(encoding.write)
    if split:
        # Dictionaries win over encodings, so what is split has none.
        options["use_dictionary"] = ["status", "checkpoint"] + [RGB] * ("vertex_rgb" not in encoding.split)
        options["column_encoding"] = dict.fromkeys(split, "BYTE_STREAM_SPLIT")
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def readers(path: Path) -> dict[str, Callable[[str], Any]]:
    """A column of the file, by each program."""
    import datasets

    datasets.disable_progress_bars()

    def hugging_face(name: str) -> Any:
        with tempfile.TemporaryDirectory() as cache:
            found = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache)
            return found[name][:]

    return {
        "DuckDB": lambda name: [row[0] for row in duckdb.execute(f"select {name} from '{path}'").fetchall()],
        "pandas": lambda name: [np.stack(list(v)) for v in pd.read_parquet(path, columns=[name])[name]],
        "polars": lambda name: pl.read_parquet(path, columns=[name])[name].to_list(),
        "datasets": hugging_face,
    }


def who_reads(path: Path, table: pa.Table) -> list[str]:
    """Programs that give the same numbers as pyarrow."""
    good = []
    for program, read in readers(path).items():
        try:
            same = all(
                np.array_equal(
                    np.array(read(name), np.float32), np.array(table[name].to_pylist(), np.float32)
                )
                for name in ("vertices_mm", "vertex_rgb")
            )
        except Exception:
            same = False
        if same:
            good.append(program)
    return good


def seconds(do: Callable[[], Any]) -> float:
    """Of one core, the median of a few."""
    times = []
    for _ in range(REPEAT):
        began = time.process_time()
        do()
        times.append(time.process_time() - began)
    return float(np.median(times))


def measured(
    rows: list[dict[str, Any]], hands: dict[str, Any], encoding: Encoding, place: Path
) -> dict[str, Any]:
    """A line of the table."""
    table = table_of(rows, hands, encoding)
    data = encoded(table, encoding)
    path = place / "labels.parquet"
    path.write_bytes(data)
    error = max(
        float(np.abs(np.array(table[name].to_pylist(), np.float32) * encoding.mm - hands[name]).max())
        for name in BIG
    )
    count = len(rows)
    return {
        "encoding": encoding.name,
        "bytes": len(data) / count,
        "bytes_without_meshes": len(encoded(table.drop_columns(list(MESH)), encoding)) / count,
        "error_mm": error,
        "write_ms": 1000 * seconds(lambda: encoded(table, encoding)) / count,
        "read_ms": 1000 * seconds(lambda: pq.read_table(io.BytesIO(data), use_threads=False)) / count,
        "read_by": who_reads(path, table),
    }


def main() -> None:
    """Print the table; one JSON line last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?", help="a folder of photos; default synthetic ones")
    parser.add_argument("--count", type=int, default=ComputeOptions().shard_size)
    args = parser.parse_args()
    print(machine())
    os.environ["HF_HUB_OFFLINE"] = "1"
    pa.set_cpu_count(1)
    rows, hands = columns_of(photo_folder(args.photos, args.count), args.count)
    lines = []
    print(
        "| encoding | bytes a hand | without meshes | off by, mm | write, ms | read, ms | read as it is by |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for encoding in ENCODINGS:
            line = measured(rows, hands, encoding, Path(place))
            lines.append(line)
            scale = "" if encoding.mm == 1 else ", in its own unit"
            print(
                f"| {line['encoding']} | {line['bytes']:,.0f} | {line['bytes_without_meshes']:,.0f} | "
                f"{line['error_mm']:.3f} | {line['write_ms']:.2f} | {line['read_ms']:.2f} | "
                f"{', '.join(line['read_by'])}{scale} |",
                flush=True,
            )
    ours, plain = (next(line for line in lines if word in line["encoding"]) for word in ("ours", "pyarrow"))
    tell(
        {
            "bytes a hand": ours["bytes"],
            "bytes a hand without meshes": ours["bytes_without_meshes"],
            "bytes a hand over plain float32's": ours["bytes"] / plain["bytes"],
            "positions and std off by at most, mm": ours["error_mm"],
            "writing over plain float32's": ours["write_ms"] / plain["write_ms"],
            "reading over plain float32's": ours["read_ms"] / plain["read_ms"],
        },
        encodings=lines,
    )


if __name__ == "__main__":
    main()
