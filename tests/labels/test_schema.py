"""Label files, written with pyarrow and read by other programs."""

import json

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from annotator.labels.schema import ROUNDING, SCHEMA_VERSION, encode_table, label_schema, labels_to_table

V = 97


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write four rows: a hand, an unreadable photo, a hand, no hand; their model has no detection score."""
    rng = np.random.default_rng(0)
    n = 2
    hands = {
        "box_xyxy": rng.uniform(0, 100, (n, 4)),
        "crop_xyxy": rng.uniform(0, 100, (n, 4)),
        "is_right": np.array([True, False]),
        "side_score": np.array([0.9, 0.6]),
        "detection_score": None,
        "joints3d_mm": rng.normal(0, 60, (n, 21, 3)),
        "joints3d_std_mm": rng.uniform(1, 20, (n, 21, 3)),
        "joints2d_px": rng.uniform(0, 100, (n, 21, 2)),
        "joints2d_std_px": rng.uniform(0, 9, (n, 21, 2)),
        "landmark_depth_px": rng.normal(0, 60, (n, 21)),
        "vertices_mm": rng.normal(0, 60, (n, V, 3)),
        "vertices_std_mm": rng.uniform(1, 20, (n, V, 3)),
        "pose": rng.normal(0, 1, (n, 48)),
        "betas": rng.normal(0, 1, (n, 10)),
        "camera": {
            "scale": np.array([0.01, 0.02]),
            "rotation": rng.normal(0, 1, (n, 3)),
            "translation": rng.normal(0, 1, (n, 2)),
            "cam_t_mm": rng.normal(0, 100, (n, 3)),
            "focal_px": np.array([500.0, 600.0]),
            "principal_px": rng.normal(100, 9, (n, 2)),
            "focal_source": np.array(["given", "assumed"]),
        },
        "vertex_rgb": rng.integers(0, 256, (n, V, 3), np.uint8),
        "vertex_visible": rng.random((n, V)) > 0.5,
        "visible_fraction": np.array([0.5, 0.4]),
        "joint_std_mm": np.array([4.0, 5.0]),
        "max_joint_std_mm": np.array([8.0, 9.0]),
        "vertex_std_mm": np.array([3.0, 2.0]),
    }
    rows = [
        {
            "image_uri": "/a b/ü\n1.jpg",
            "image_id": "ü\n1.jpg",
            "hand_index": 0,
            "status": "ok",
            "width": 100,
            "height": 80,
        },
        {
            "image_uri": "/2",
            "image_id": "2",
            "hand_index": -1,
            "status": "unreadable",
            "reason": "empty",
            "error": "0 bytes",
        },
        {"image_uri": "/3", "image_id": "3", "hand_index": 0, "status": "ok", "width": 50, "height": 60},
        {
            "image_uri": "/4",
            "image_id": "4",
            "hand_index": -1,
            "status": "no_hand",
            "reason": "no_hand_found",
        },
    ]
    folder = tmp_path_factory.mktemp("labels") / "data"
    folder.mkdir()
    table = labels_to_table(
        rows, hands, [0, 2], label_schema(V, {"amvur": json.dumps({"schema_version": SCHEMA_VERSION})})
    )
    table.validate(full=True)
    data = encode_table(table)
    assert data == encode_table(labels_to_table(rows, hands, [0, 2], table.schema))
    (folder / "shard-0000000.parquet").write_bytes(data)
    return folder, rows, hands


def test_pyarrow_reads_back_schema_metadata_and_rows(written):
    folder, rows, _ = written
    table = pq.read_table(folder)
    assert table.schema.equals(label_schema(V))
    assert json.loads(table.schema.metadata[b"amvur"]) == {"schema_version": SCHEMA_VERSION}
    assert table["image_uri"].to_pylist() == [row["image_uri"] for row in rows]
    assert table["reason"].to_pylist() == [None, "empty", None, "no_hand_found"]


@pytest.mark.parametrize("column", ROUNDING)
def test_rounding_loses_at_most_half_a_step(written, column):
    folder, _, hands = written
    back = np.array([v for v in pq.read_table(folder)[column].to_pylist() if v is not None])
    error = np.abs(back - hands[column])
    assert error.max() <= ROUNDING[column] / 2 + 1e-5
    assert ROUNDING[column] / 2 <= 0.0625
    assert (back / ROUNDING[column] == np.round(back / ROUNDING[column])).all()


def test_duckdb_reads_every_column(written):
    folder, _, hands = written
    query = duckdb.sql(
        "select image_uri, status, vertices_mm, vertices_std_mm, joints2d_px, camera, vertex_rgb, "
        f"vertex_visible, pose, is_right, max_joint_std_mm from '{folder}/*.parquet' order by image_id"
    ).fetchall()
    assert len(query) == 4
    by_uri = {row[0]: row for row in query}
    first, missing = by_uri["/a b/ü\n1.jpg"], by_uri["/4"]
    np.testing.assert_allclose(first[2], hands["vertices_mm"][0], atol=0.04)
    np.testing.assert_allclose(first[3], hands["vertices_std_mm"][0], atol=0.07)
    assert first[5]["focal_source"] == "given" and first[5]["cam_t_mm"] is not None
    np.testing.assert_array_equal(first[6], hands["vertex_rgb"][0])
    np.testing.assert_allclose(first[8], hands["pose"][0], atol=2e-4)
    assert first[9] is True
    assert missing[1] == "no_hand" and missing[2] is None and missing[5] is None and missing[9] is None
    assert duckdb.sql(
        f"select count(*) from '{folder}/*.parquet' where max_joint_std_mm < 8.5"
    ).fetchall() == [(1,)]


def test_pandas_and_polars_read_arrays(written):
    folder, _, hands = written
    frame = pd.read_parquet(folder)
    vertices = np.stack([np.stack(v) for v in frame[frame.status == "ok"].vertices_mm])
    np.testing.assert_allclose(vertices, hands["vertices_mm"], atol=0.04)
    assert frame.camera[1] is None and frame.camera[0]["rotation"].shape == (3,)
    table = pl.read_parquet(folder / "*.parquet").filter(pl.col("status") == "ok")
    assert table["vertices_mm"].to_numpy().shape == (2, V, 3)
    np.testing.assert_allclose(table["vertices_mm"].to_numpy(), hands["vertices_mm"], atol=0.04)
    np.testing.assert_array_equal(table["vertex_visible"].to_numpy(), hands["vertex_visible"])


def test_hugging_face_datasets_reads_it(written, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    folder, _, hands = written
    found = datasets.load_dataset(
        "parquet", data_files=f"{folder}/*.parquet", split="train", cache_dir=str(tmp_path)
    )
    assert len(found) == 4
    np.testing.assert_allclose(found[0]["vertices_mm"], hands["vertices_mm"][0], atol=0.04)
    assert found[1]["vertices_mm"] is None


def test_a_file_with_no_hand_at_all_has_the_same_schema():
    rows = [{"image_uri": "/1", "image_id": "1", "hand_index": -1, "status": "unreadable", "reason": "empty"}]
    table = labels_to_table(rows, {}, [], label_schema(V))
    table.validate(full=True)
    assert table["vertices_mm"].null_count == 1 and len(encode_table(table)) > 0
