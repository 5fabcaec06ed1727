"""Peak memory of a process that tracks one long sequence: one synthetic hand that moves back and forth, without photos.

python benchmarks/track_memory.py [FRAMES ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from common import machine, print_figures

from annotator.coordinates import rotation_matrices
from annotator.hand import load_hand
from annotator.hand.layer import HandLayer
from annotator.labels.schema import SCHEMA_VERSION, encode_table, label_schema, labels_to_table

#: Frames of the motion before it repeats, which are one label file.
PERIOD = 200

_SIZE_PX, _PX_PER_MM = 640, 0.8

#: Runs in a process of its own.
_TRACK = """
import resource, sys
from annotator.commands.track import tracked_tables
from annotator.hand import load_hand
from annotator.labels.schema import label_schema, write_tables
from annotator.sources.sequences import ADDED, SequenceSource
labels, out = sys.argv[1:]
hand, source = load_hand("open"), SequenceSource(labels)
schema = label_schema(hand.vertex_count, None, source.columns | ADDED)
write_tables(out, tracked_tables(list(source), labels, hand, 10, schema), schema)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main(lengths: list[int]) -> None:
    """Print a row for each length."""
    print(machine())
    figures: dict[str, float] = {}
    print("| frames | peak memory, MB | frames/s |\n|---|---|---|")
    for frames in lengths:
        with tempfile.TemporaryDirectory() as folder:
            labels = long_sequence(Path(folder) / "labels", frames)
            began = time.perf_counter()
            peak_mb = tracking_peak_mb(labels, Path(folder) / "tracked.parquet")
            rate = frames / (time.perf_counter() - began)
        print(f"| {frames:,} | {peak_mb:.0f} | {rate:.0f} |", flush=True)
        figures |= {f"{frames:,} frames, peak MB": peak_mb, f"{frames:,} frames, frames/s": rate}
    print_figures(figures)


def tracking_peak_mb(labels: Path, out: Path) -> float:
    """Return the largest memory of a process that tracks a label set into one file."""
    command = [sys.executable, "-c", _TRACK, str(labels), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024) / 1e6


def long_sequence(folder: Path, frames: int) -> Path:
    """Write the labels of one video of a hand, `PERIOD` frames to a file."""
    hand = load_hand("open")
    facts = {"schema_version": SCHEMA_VERSION, "checkpoint": "drawn", "hand": hand.id, "calibration": {}}
    schema = label_schema(hand.vertex_count, {"amvur": json.dumps(facts)})
    columns = _hands()
    (folder / "data").mkdir(parents=True)
    for first in range(0, frames, PERIOD):
        count = min(PERIOD, frames - first)
        rows: list[dict[str, Any]] = [
            {"image_uri": "long.mp4", "image_id": f"long.mp4#{frame}", "duplicate": False, "hand_index": 0}
            | {"frame_index": frame, "frame_time_s": frame / 30, "status": "ok", "box_source": "detector"}
            | {"width": _SIZE_PX, "height": _SIZE_PX, "side_score": 0.9, "checkpoint": "drawn"}
            for frame in range(first, first + count)
        ]
        part = {name: _cut(values, count) for name, values in columns.items()}
        table: pa.Table = labels_to_table(rows, part, range(count), schema)
        (folder / "data" / f"shard-{first:07d}.parquet").write_bytes(encode_table(table))
    return folder


def _cut(values: Any, count: int) -> Any:
    return (
        {name: _cut(one, count) for name, one in values.items()}
        if isinstance(values, dict)
        else values[:count]
    )


def _hands() -> dict[str, Any]:
    """Return the label columns of one period, with errors from frame to frame."""
    hand, rng = load_hand("open"), np.random.default_rng(0)
    phase = 2 * np.pi * np.arange(PERIOD)[:, None] / PERIOD
    pose = 0.25 * np.sin(phase + rng.uniform(0, 6, 48)) + 0.04 * rng.normal(size=(PERIOD, 48))
    pose[:, 3:] += hand.hands_mean
    betas = 0.2 * rng.normal(size=(PERIOD, 10))
    rotations = torch.from_numpy(rotation_matrices(pose.reshape(-1, 16, 3)).astype(np.float32))
    vertices, joints = (one.numpy() for one in HandLayer(hand)(rotations, torch.from_numpy(betas).float()))
    wrist_px = np.array([320.0, 320.0]) + 100 * np.concatenate([np.sin(phase), np.cos(phase)], 1)
    joints2d_px = wrist_px[:, None] + _PX_PER_MM * joints[..., :2]
    low, high = joints2d_px.min(1), joints2d_px.max(1)
    half_px, centre_px = 0.7 * (high - low).max(1), (low + high) / 2
    std_mm = np.full(joints.shape, 5.0)
    std_mm[:, 0] = 0
    full = np.ones(PERIOD)
    return {
        "box_xyxy": np.concatenate([low, high], 1),
        "crop_xyxy": np.concatenate([centre_px - half_px[:, None], centre_px + half_px[:, None]], 1),
        "is_right": full > 0,
        "joints3d_mm": joints,
        "joints3d_std_mm": std_mm,
        "joints2d_px": joints2d_px,
        "joints2d_std_px": np.full((PERIOD, 21, 2), 2.0),
        "vertices_mm": vertices,
        "vertices_std_mm": np.full(vertices.shape, 5.0),
        "pose": pose,
        "betas": betas,
        "camera": {
            "scale": _PX_PER_MM / half_px,
            "rotation": np.zeros((PERIOD, 3)),
            "translation": (wrist_px - centre_px) / half_px[:, None],
            "cam_t_mm": np.tile([0.0, 0.0, 800.0], (PERIOD, 1)),
            "focal_px": 640.0 * full,
            "principal_px": np.full((PERIOD, 2), 320.0),
            "focal_source": ["given"] * PERIOD,
        },
        "vertex_rgb": rng.integers(60, 200, (*vertices.shape[:2], 3), np.uint8),
        "vertex_visible": vertices[..., 2] < 0,
        "visible_fraction": 0.5 * full,
        "joint_visible": np.ones((PERIOD, 21), bool),
        "joint_visible_score": np.ones((PERIOD, 21)),
        "hidden_joints": np.zeros(PERIOD, np.int8),
        "joint_std_mm": 5 * full,
        "max_joint_std_mm": 5 * full,
        "vertex_std_mm": 5 * full,
    }


if __name__ == "__main__":
    main([int(frames) for frames in sys.argv[1:]] or [1_000, 10_000])
