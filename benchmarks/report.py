"""Measure a report of many labels: `python benchmarks/report.py [--count 100000] [--truth]`.

The labels have the size of real ones, 800 vertices per hand; files differ in numbers and share the meshes.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import machine, print_figures

from annotator.hand import load_hand
from annotator.job.record import RunRecord, RunSettings, write_run_record
from annotator.labels.folder import write_faces
from annotator.labels.schema import SCHEMA_VERSION, encode_table, label_schema, labels_to_table, without_hand
from annotator.report import write_report
from annotator.storage.files import write_atomic

PER_FILE = 1024


def write_labels(folder: Path, count: int) -> None:
    """Write a label set of `count` rows, one in twenty without a hand."""
    hand = load_hand("open")
    rng = np.random.default_rng(0)
    facts = {"calibration": {"fitted_on": "synth"}, "hand": hand.id}
    schema = label_schema(
        hand.vertex_count, {"amvur": json.dumps({"schema_version": SCHEMA_VERSION, **facts})}
    )
    heavy = _meshes(hand.v_template * 1000, rng)
    outcomes = {"ok": 0, "unreadable: truncated": 0}
    truths = []
    for number in range(-(-count // PER_FILE)):
        size = min(PER_FILE, count - number * PER_FILE)
        lost = rng.random(size) < 0.05
        rows = [_row(number * PER_FILE + k, bool(lost[k])) for k in range(size)]
        hands = {name: values[: size - lost.sum()] for name, values in heavy.items() if name != "camera"}
        hands["camera"] = {name: values[: size - lost.sum()] for name, values in heavy["camera"].items()}
        hands |= _stds(len(hands["is_right"]), rng)
        table = labels_to_table(rows, hands, np.flatnonzero(~lost).tolist(), schema)
        write_atomic(str(folder / "data" / f"shard-{number:07d}.parquet"), encode_table(table))
        truths.append(_truth(table.filter(pa.array(~lost)), hands, rng))
        outcomes["ok"] += int(size - lost.sum())
        outcomes["unreadable: truncated"] += int(lost.sum())
    write_atomic(str(folder / "truth.parquet"), encode_table(pa.concat_tables(truths)))
    write_faces(str(folder), hand.faces)
    settings = RunSettings(1, "photos", "0" * 12, 1, hand.id, hand.vertex_count, "auto", 96)
    write_run_record(str(folder), RunRecord(settings, outcomes, seconds=count / 100))


def _truth(table: pa.Table, hands: dict[str, Any], rng: np.random.Generator) -> pa.Table:
    """Return true joints, at distances from the labels that match their std."""
    true = hands["joints3d_mm"] + rng.normal(0, 1, hands["joints3d_mm"].shape) * hands["joints3d_std_mm"]
    kind = table.schema.field("joints3d_mm").type
    table = table.select(["image_id", "joints2d_px"])
    return table.append_column("joints3d_mm", pa.array(true.tolist(), kind))


def _row(number: int, is_lost: bool) -> dict[str, Any]:
    name = f"camera-{number % 7}/{number:08d}.jpg"
    outcome = without_hand("truncated", "the file is cut short") if is_lost else {"status": "ok"}
    return {
        "image_id": name,
        "image_uri": f"/photos/{name}",
        "hand_index": -is_lost,
        "width": 640,
        "height": 480,
    } | outcome


def _meshes(vertices_mm: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    count = PER_FILE
    noise = rng.normal(0, 2, (count, *vertices_mm.shape))
    vectors = ("rotation", "translation", "cam_t_mm", "principal_px")
    camera: dict[str, Any] = {
        "scale": 0.008,
        "rotation": np.zeros(3),
        "translation": np.zeros(2),
        "cam_t_mm": np.zeros(3),
        "focal_px": 768.0,
        "principal_px": np.zeros(2),
    }
    return {
        "vertices_mm": vertices_mm + noise,
        "vertices_std_mm": rng.gamma(4, 3, noise.shape),
        "vertex_rgb": rng.integers(0, 256, noise.shape),
        "vertex_visible": rng.random(noise.shape[:2]) < 0.5,
        "joints2d_px": rng.uniform(0, 480, (count, 21, 2)),
        "joints2d_std_px": rng.gamma(4, 1, (count, 21, 2)),
        "crop_xyxy": np.tile([100.0, 40.0, 500.0, 440.0], (count, 1)),
        "is_right": rng.random(count) < 0.5,
        "detection_score": rng.random(count),
        "camera": {
            name: np.tile(value, (count, 1) if name in vectors else count) for name, value in camera.items()
        }
        | {"focal_source": ["assumed"] * count},
    }


def _stds(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    std = rng.gamma(4, 2, (count, 1, 1)) * rng.uniform(0.5, 2, (count, 21, 3))
    std[:, 0] = 0
    lengths = np.linalg.norm(std[:, 1:], axis=-1)
    joints = rng.normal(0, 40, (count, 21, 3))
    return {
        "joints3d_mm": joints - joints[:, :1],
        "joints3d_std_mm": std,
        "joint_std_mm": lengths.mean(1),
        "max_joint_std_mm": lengths.max(1),
    }


def main() -> None:
    """Write labels, make the report, and print its time and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--truth", action="store_true", help="add a truth for every hand")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="amvur-bench-") as made:
        labels = Path(made)
        write_labels(labels, options.count)
        size = sum(path.stat().st_size for path in (labels / "data").iterdir())
        truth = str(labels / "truth.parquet") if options.truth else None
        start, used = time.perf_counter(), time.process_time()
        page = write_report(str(labels), truth=truth)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        folder_bytes = sum(path.stat().st_size for path in page.parent.rglob("*") if path.is_file())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        what = f"report of {options.count:,} labels" + (" with truth" if options.truth else "")
        print_figures(
            {
                f"{what}, s": seconds,
                f"{what}, s of a core": used,
                f"{what}, page, KB": page.stat().st_size / 1e3,
                f"{what}, folder, MB": folder_bytes / 1e6,
                f"{what}, peak memory, GB": peak,
                "labels, MB": size / 1e6,
            }
        )


if __name__ == "__main__":
    main()
