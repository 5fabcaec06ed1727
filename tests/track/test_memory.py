"""Memory of `amvur track` does not grow with a sequence, and blocks of frames join without a seam."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import roma
import torch

from annotator.track.disk_array import DiskArray
from annotator.track.tables import BLOCK_ROWS
from annotator.track.vertex_columns import VertexRows
from tests.support.moving_labels import LAYER, VIDEO_COLUMNS, Clip, Moving, table_of, write_labels
from tests.support.tracked_labels import write_tracked

pytestmark = pytest.mark.slow

PERIOD = 200

TRACK = """
import resource, sys
from annotator.commands.track import tracked_tables
from annotator.labels.schema import label_schema, write_tables
from annotator.hand import load_hand
from annotator.sources.sequences import ADDED, SequenceSource
labels, out = sys.argv[1:]
source, hand = SequenceSource(labels), load_hand("open")
schema = label_schema(hand.vertex_count, None, source.columns | ADDED)
write_tables(out, tracked_tables(list(source), labels, hand, 5, schema), schema)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def period() -> pa.Table:
    return table_of(Clip("long.mp4", PERIOD, [Moving(range(PERIOD), speed_px=(0.0, 0.0))]), VIDEO_COLUMNS)


def long_labels(folder: Path, period: pa.Table, frames: int) -> Path:
    """Labels of one hand over many frames: some frames again and again."""

    def later(start: int) -> pa.Table:
        table = period
        for name, values in (
            ("frame_index", np.arange(start, start + PERIOD, dtype=np.int32)),
            ("frame_time_s", np.arange(start, start + PERIOD) / 30),
            ("image_id", [f"long.mp4#{k}" for k in range(start, start + PERIOD)]),
        ):
            table = table.set_column(table.schema.get_field_index(name), name, [values])
        return table

    tables = [later(start) for start in range(0, frames, PERIOD)]
    return write_labels(folder / "labels", tables, VIDEO_COLUMNS, per_file=PERIOD)


def test_three_times_the_frames_take_no_more_memory(period, tmp_path):
    """Held whole, 1,200 more frames took 170 MB."""
    peaks = []
    for frames in (600, 1800):
        labels, out = long_labels(tmp_path / str(frames), period, frames), tmp_path / f"{frames}.parquet"
        done = subprocess.run(
            [sys.executable, "-c", TRACK, str(labels), str(out)],
            check=True,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        peaks.append(int(done.stdout))
        made = pq.read_table(out, columns=["track_id", "frame_index", "source"])
        assert made["frame_index"].to_pylist() == list(range(frames))
        assert set(made["track_id"].to_pylist()) == {0} and set(made["source"].to_pylist()) == {"label"}
    assert peaks[1] < 1.2 * peaks[0]


def test_meshes_made_in_blocks_are_those_of_pose_and_shape_in_every_frame(tmp_path):
    """Labels are the parametric hand: whatever blocks they lie in, smoothed meshes are the smoothed hand's."""
    right = Moving(range(300), speed_px=(0.3, 0.0), missing=(127, 128, 129), flipped=(0, 1, 255, 256, 299))
    left = Moving(range(90, 290), is_right=False, start_px=(450.0, 300.0), speed_px=(0.0, 0.0), seed=2)
    labels = write_labels(
        tmp_path / "labels", [table_of(Clip("a.mp4", 300, [right, left]), VIDEO_COLUMNS)], VIDEO_COLUMNS
    )
    (file,) = (write_tracked(labels, tmp_path / "tracked") / "data").iterdir()
    with file.open("rb") as opened:
        groups = pq.ParquetFile(opened)
        assert groups.num_row_groups == 2 and groups.metadata.row_group(0).num_rows == BLOCK_ROWS
        rows = groups.read().to_pylist()
    assert [sum(row["track_id"] == track for row in rows) for track in (0, 1)] == [300, 200]
    for row in rows:
        rotations = roma.rotvec_to_rotmat(torch.tensor(row["pose"]).view(1, 16, 3))
        vertices, _ = LAYER(rotations, torch.tensor(row["betas"])[None])
        side = [1, 1, 1] if row["is_right"] else [-1, 1, 1]
        np.testing.assert_allclose(vertices[0].numpy() * side, row["vertices_mm"], atol=0.2)
        assert np.linalg.norm(row["vertices_std_mm"], axis=1).mean() == pytest.approx(
            row["vertex_std_mm"], rel=0.05
        )


def test_rows_of_a_scratch_come_back_in_any_order():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 4, 3)).astype(np.float32)
    kept = DiskArray((4, 3), np.dtype(np.float32))
    kept.write(20, rows[20:])
    kept.write(0, rows[:20])
    for wanted in (np.arange(50), rng.permutation(50), np.array([7, 7, 8, 3]), np.zeros(0, np.int64)):
        assert np.array_equal(kept.read(wanted), rows[wanted])


def test_colours_of_hands_are_the_means_of_their_visible_skin():
    rgb = np.zeros((3, 4, 3), np.uint8)
    rgb[0] = [[10, 20, 30], [30, 40, 50], [200, 200, 200], [200, 200, 200]]
    seen = [[True, True, False, False], [False] * 4, [True] * 4]
    xyz = np.zeros((3, 4, 3), np.float32).tolist()
    table = pa.table(
        {
            "vertices_mm": pa.array(xyz, pa.list_(pa.list_(pa.float32(), 3), 4)),
            "vertex_rgb": pa.array([*rgb[:2].tolist(), None], pa.list_(pa.list_(pa.uint8(), 3), 4)),
            "vertex_visible": pa.array(seen, pa.list_(pa.bool_(), 4)),
        }
    )
    nan = [np.nan] * 3
    np.testing.assert_allclose(VertexRows([table], 4).rgb, [[20, 30, 40], nan, nan])
    np.testing.assert_allclose(VertexRows([table.drop(["vertex_rgb"])], 4).rgb, [nan] * 3)
