"""Measure time and memory of filtering: a million rows without meshes, and rows with meshes.

    python benchmarks/filter.py [--rows 1000000] [--meshes 100000]

The rows are random, in files of 256 like those of `annotate`. `--list` reads scalar columns only. With meshes, the
reference is a plain copy of the same kept rows by pyarrow, file by file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import machine, print_figures

from annotator.labels.schema import SCHEMA_VERSION, label_schema, write_tables

FILE_ROWS = 256
MESH = ("vertices_mm", "vertices_std_mm", "vertex_rgb", "vertex_visible")


def write_labels(folder: Path, rows: int, vertices: int | None) -> None:
    """Write random labels; without meshes, all other columns of a hand exist."""
    (folder / "data").mkdir(parents=True)
    schema = label_schema(
        vertices or 1,
        {"amvur": json.dumps({"schema_version": SCHEMA_VERSION, "hand": "bench", "calibration": {}})},
    )
    if vertices is None:
        schema = pa.schema([field for field in schema if field.name not in MESH], metadata=schema.metadata)
    rng = np.random.default_rng(0)
    pool = [_table(schema, rng) for _ in range(8)]
    for number in range(rows // FILE_ROWS):
        table = pool[number % len(pool)]
        std = rng.gamma(4, 4, FILE_ROWS).astype(np.float32)
        names = [f"s3://photos/{number:06d}/{k:03d}.jpg" for k in range(FILE_ROWS)]
        for name, values in (
            ("joint_std_mm", std),
            ("max_joint_std_mm", 2 * std),
            ("image_uri", names),
            ("image_id", names),
        ):
            index = schema.get_field_index(name)
            table = table.set_column(index, schema.field(name), pa.array(values, schema.field(name).type))
        with (folder / "data" / f"shard-{number:07d}.parquet").open("wb") as file:
            write_tables(file, [table], schema)


def _table(schema: pa.Schema, rng: np.random.Generator) -> pa.Table:
    return pa.table([_column(field, rng) for field in schema], schema=schema)


def _column(field: pa.Field, rng: np.random.Generator) -> pa.Array:
    kind, count = field.type, FILE_ROWS
    if pa.types.is_string(kind):
        return pa.array(["ok" if field.name == "status" else None] * count, kind)
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays([_column(f, rng) for f in kind], fields=list(kind))
    sizes = []
    while pa.types.is_fixed_size_list(kind):
        sizes.append(kind.list_size)
        kind = kind.value_type
    total = count * int(np.prod(sizes))
    # Rounded like labels, so that files have the same size.
    values = (rng.normal(0, 40, total) * 16).round() / 16
    array = pa.array(values > 0 if pa.types.is_boolean(kind) else values.astype(kind.to_pandas_dtype()), kind)
    for size in reversed(sizes):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array.cast(field.type)


def timed(*arguments: str) -> tuple[float, float, str]:
    """Return seconds, peak GiB and output of an amvur command in its own process."""
    code = (
        "import sys, resource, time; began = time.perf_counter(); sys.argv = ['amvur', *sys.argv[1:]]\n"
        "import cli\ntry: cli.main()\nexcept SystemExit as end: assert not end.code\n"
        "print('@', time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    output, _, figures = done.stdout.rpartition("@")
    seconds, kilobytes = map(float, figures.split())
    return seconds, kilobytes / 2**20, output


def plain_copy(labels: Path, out: Path, kept: Path) -> float:
    """Return the seconds that pyarrow takes to read and write those rows."""
    chosen = {
        path.name: pq.read_table(path, columns=["image_id"])["image_id"] for path in sorted(kept.iterdir())
    }
    out.mkdir()
    began = time.perf_counter()
    for name, ids in chosen.items():
        table = pq.read_table(labels / "data" / name)
        table = table.filter(pa.compute.is_in(table["image_id"], ids.combine_chunks()))
        with (out / name).open("wb") as file:
            write_tables(file, [table], table.schema)
    return time.perf_counter() - began


def main() -> None:
    """Print the table, then one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--meshes", type=int, default=100_000)
    args = parser.parse_args()
    print(machine())
    scratch = Path(tempfile.mkdtemp(prefix="amvur-filter-"))
    write_labels(scratch / "narrow", args.rows, None)
    figures: dict[str, float] = {}
    for name, options in (
        ("max", ["--max-joint-std-mm", "24"]),
        ("best", ["--keep-best", "0.5"]),
        ("where", ["--where", "is_right and joint_std_mm < 12"]),
    ):
        seconds, gib, output = timed(
            "filter", str(scratch / "narrow"), str(scratch / f"{name}.txt"), "--list", *options
        )
        what = f"filter --list {' '.join(options)}, {args.rows:,} rows"
        figures |= {f"{what}, s": seconds, f"{what}, GiB": gib}
        print(f"{what}: {output.splitlines()[1]}")
    shutil.rmtree(scratch / "narrow")
    write_labels(scratch / "meshes", args.meshes, 800)
    seconds, gib, output = timed(
        "filter", str(scratch / "meshes"), str(scratch / "kept"), "--keep-best", "0.5"
    )
    copy_s = plain_copy(scratch / "meshes", scratch / "copy", scratch / "kept" / "data")
    figures |= {
        f"filter, {args.meshes:,} rows with meshes, half kept, over a plain copy of those": seconds / copy_s,
        f"filter, {args.meshes:,} rows with meshes, GiB": gib,
    }
    print_figures(figures)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
