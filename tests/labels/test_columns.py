"""Labels without texture or mesh: the other columns stay the same, nothing else is computed, and readers say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from annotator import UserError, annotate, export_labels
from annotator.job.shard import Shard
from annotator.job.stages import predict_shard, shard_table
from annotator.labels.schema import encode_table, label_schema
from annotator.photos.crops import Crops, crop_photo
from annotator.report import write_report
from tests.report.test_report import write_labels

TEXTURE = {"vertex_rgb"}
MESH = {"vertices_mm", "vertices_std_mm", "vertex_visible", "visible_fraction", "vertex_std_mm"}


@pytest.fixture
def crops(lively) -> Crops:
    """Five noisy photos, one of them listed as a left hand."""
    photos = np.random.default_rng(0).integers(0, 255, (5, 90, 70, 3), np.uint8)
    cut_px = lively.checkpoint.cut_px
    return Crops.stack(
        [crop_photo(photo, 70, 90, cut_px, right_score=[1.0, 0.0][k == 2]) for k, photo in enumerate(photos)]
    )


@pytest.mark.parametrize(("columns", "left_out"), [("mesh", TEXTURE), ("joints", TEXTURE | MESH)])
def test_the_other_columns_stay_the_same_to_the_last_bit(lively, crops, columns, left_out):
    parts = lively.network.hand_network
    painted = []
    hook = parts.texture.register_forward_hook(lambda *_: painted.append(1))
    try:
        fewer = lively.predict_crops(crops, columns=columns)
        assert not painted
        whole = lively.predict_crops(crops)
        assert painted
    finally:
        hook.remove()
    filled = {name for name, values in whole.items() if values is not None}
    assert filled - {name for name, values in fewer.items() if values is not None} == left_out
    for name in filled - left_out - {"camera"}:
        np.testing.assert_array_equal(fewer[name], whole[name], name)
    for name, values in whole["camera"].items():
        np.testing.assert_array_equal(fewer["camera"][name], values, name)


def test_each_choice_takes_fewer_bytes(lively, crops):
    sizes = {}
    for columns in ("all", "mesh", "joints"):
        shard = Shard([{} for _ in range(5)], list(range(5)), crops)
        schema = label_schema(800, columns=columns)
        table = shard_table(predict_shard(lively, shard, "auto", columns=columns), schema)
        assert not {field for field in table.column_names if "vert" in field} or columns != "joints"
        sizes[columns] = len(encode_table(table))
    assert sizes["joints"] < 0.5 * sizes["all"] and sizes["joints"] < sizes["mesh"] < sizes["all"]


def test_a_wrong_choice_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="columns is 'bones', may be all, mesh, joints"):
        annotate(str(tmp_path), str(tmp_path / "labels"), columns="bones")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="samples are meshes, which columns 'joints' leaves out"):
        annotate(str(tmp_path), str(tmp_path / "labels"), columns="joints", samples=2)


def test_readers_work_without_texture_and_name_the_missing_mesh(tmp_path: Path):
    labels = write_labels(tmp_path / "labels", 12, bad=0)
    (file,) = (labels / "data").iterdir()
    whole = pq.read_table(file)
    pq.write_table(whole.drop(list(TEXTURE)), file)
    assert write_report(str(labels), tmp_path / "report", count=3).is_file()
    export_labels(str(labels), str(tmp_path / "table.csv"), "csv")
    pq.write_table(whole.drop([*TEXTURE, *MESH]), file)
    export_labels(str(labels), str(tmp_path / "joints.csv"), "csv")
    for refused in (
        lambda: write_report(str(labels), tmp_path / "none", count=3),
        lambda: export_labels(str(labels), str(tmp_path / "meshes"), "glb"),
    ):
        with pytest.raises(UserError, match=r"column 'vertices_mm'.*without --columns joints"):
            refused()
