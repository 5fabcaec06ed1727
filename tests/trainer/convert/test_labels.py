from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotator.commands.filter import Keep, filter_labels
from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.hand.anatomy import chirality
from annotator.labels.folder import label_files
from annotator.labels.schema import SCHEMA_VERSION, encode_table, label_schema, labels_to_table
from trainer.config import SourceConfig
from trainer.convert.convert import convert
from trainer.data.examples import write_examples
from trainer.data.stored import StoredExamples
from trainer.evaluation.calibrate import calibrate
from trainer.evaluation.evaluate import evaluate
from trainer.synth import write_photos


def rows_of(out: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(f) for f in sorted((out / "data").glob("*.parquet"))]).to_pylist()


def facts_of(out: Path) -> dict[str, Any]:
    return json.loads(pq.read_schema(out / "data" / "part-000000.parquet").metadata[b"amvur"])


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "hands"
    write_photos(folder, 12, seed=2, size_px=96)
    return folder


def test_labels_that_annotate_wrote_are_joined_with_their_photos(
    labelled: Any, photos: Path, tmp_path: Path
) -> None:
    labels, record, _ = labelled
    out = tmp_path / "out"
    summary = convert(f"labels:{labels}", str(out))
    assert summary.examples == record.outcomes["ok"] == 50
    assert facts_of(out)["hand"] == summary.hand == record.settings.hand == load_hand("open").id
    there = {
        row["image_id"]: row
        for name in label_files(str(labels))
        for row in pq.read_table(labels / "data" / name).to_pylist()
    }
    rows = rows_of(out)
    for row in rows:
        assert row["image"] == (photos / row["image_id"]).read_bytes()
        label = there.pop(row["image_id"])
        assert {name: row[name] for name in label} == label
    assert not there
    # Files hold the photos in the order of their paths.
    assert [row["image_id"] for row in rows] != sorted(row["image_id"] for row in rows)
    # Examples keep the labels' std; because photos may be rotated, x and y share one.
    batch = StoredExamples(str(out), load_hand("open"), 32, SourceConfig(source=str(out)), seed=0).batch(
        [0, 1, 2]
    )
    for number, row in enumerate(rows[:3]):
        for name in ("joints3d", "vertices"):
            x, y, z = np.array(row[f"{name}_std_mm"]).T
            across = np.sqrt((x**2 + y**2) / 2)
            found = getattr(batch, f"{name}_std_mm")[number]
            np.testing.assert_allclose(found, np.stack([across, across, z], 1), rtol=1e-5)
            assert across.max() > 1 and getattr(batch, f"has_{name}")[number]


def test_missing_moved_and_replaced_photos_are_left_out_or_located(
    labelled: Any, photos: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    shutil.copytree(labelled[0], labels)
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    (moved / "left" / "001.jpg").unlink()
    (moved / "left" / "003.jpg").write_bytes((moved / "left" / "005.jpg").read_bytes())
    (moved / "left" / "005.jpg").write_bytes(b"nothing")
    summary = convert(f"labels:{labels}", str(tmp_path / "out"), images=str(moved))
    # Photos missing or damaged in this folder still exist where they were labelled.
    assert summary.examples == 49
    assert summary.left_out == {"photo size differs from the labels": 1}
    for name in label_files(str(labels)):
        table = pq.read_table(labels / "data" / name)
        uris = pa.array([f"/gone/{i}" for i in table["image_id"].to_pylist()])
        table = table.set_column(0, "image_uri", uris).replace_schema_metadata(table.schema.metadata)
        (labels / "data" / name).write_bytes(encode_table(table))
    run = json.loads((labels / "_run.json").read_text())
    for source, count in ((str(moved), 47), (None, 0)):
        run["settings"]["source"] = source or "/gone"
        (labels / "_run.json").write_text(json.dumps(run))
        if count:
            summary = convert(f"labels:{labels}", str(tmp_path / "moved-out"))
            assert summary.examples == count
            assert {"photo missing", "photo not_a_photo"} < set(summary.left_out)
        else:
            with pytest.raises(UserError, match="gives no examples .50: photo missing.; give the photos'"):
                convert(f"labels:{labels}", str(tmp_path / "none"))


def test_synthetic_photos_and_their_truth_become_examples_left_hands_unmirrored(
    synthetic: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert convert(f"synth:{synthetic}", str(out)).examples == 12
    rows = rows_of(out)
    truth = {row["image_id"]: row for row in pq.read_table(synthetic / "truth.parquet").to_pylist()}
    for row in rows:
        assert row["image"] == (synthetic / "images" / row["image_id"]).read_bytes()
        assert row["hand_mask"] == (synthetic / "masks" / f"{row['image_id'][:-4]}.png").read_bytes()
        label = truth.pop(row["image_id"])
        assert {name: row[name] for name in label} == label
        assert (chirality(np.array(row["joints3d_mm"])) > 0) == row["is_right"]
    assert not truth
    assert {row["is_right"] for row in rows} == {True, False}


def detected(folder: Path, synthetic: Path, vertex_count: int | None = None) -> Path:
    """A label set with 2D joints alone, as a detector writes: some photos without a hand, one of unknown side."""
    truth = pq.read_table(synthetic / "truth.parquet").to_pylist()
    rows = [{"image_uri": str(synthetic / row["image_uri"]), "image_id": row["image_id"]} for row in truth]
    for k, row in enumerate(rows):
        row |= {"status": "ok", "hand_index": 0, "width": 96, "height": 96}
        if k % 4 == 3:
            row |= {"status": "no_hand", "hand_index": -1}
        elif k:
            row["is_right"] = truth[k]["is_right"]
    hands = [k for k in range(len(rows)) if k % 4 != 3]
    columns = {
        name: np.array([truth[k][name] for k in hands], np.float32) for name in ("box_xyxy", "joints2d_px")
    }
    schema = label_schema(
        vertex_count or 1, {"amvur": json.dumps({"schema_version": SCHEMA_VERSION, "hand": None})}
    )
    if vertex_count is None:
        schema = pa.schema([f for f in schema if not f.name.startswith("vert")], metadata=schema.metadata)
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate((range(0, 5), range(5, len(rows)))):
        mine = [k for k in hands if k in part]
        picked = {name: values[[hands.index(k) for k in mine]] for name, values in columns.items()}
        table = labels_to_table([rows[k] for k in part], picked, [k - part.start for k in mine], schema)
        (folder / "data" / f"shard-{number}.parquet").write_bytes(encode_table(table))
    return folder


@pytest.mark.parametrize("vertex_count", [None, 805])
def test_labels_of_2d_joints_alone_become_examples(
    vertex_count: int | None, synthetic: Path, tmp_path: Path
) -> None:
    labels = detected(tmp_path / "labels", synthetic, vertex_count)
    summary = convert(f"labels:{labels}", str(tmp_path / "out"))
    assert (summary.examples, summary.hand) == (8, None)
    assert summary.left_out == {"no_hand": 3, "unknown side": 1}
    for row in rows_of(tmp_path / "out"):
        assert np.isfinite(row["joints2d_px"]).all()
        assert row["joints3d_mm"] is row["vertices_mm"] is None
    assert duckdb.sql(f"select count(*) from '{tmp_path}/out/data/*.parquet'").fetchall() == [(8,)]


def test_squares_beside_the_hands_become_examples_without_a_hand(synthetic: Path, tmp_path: Path) -> None:
    labels = detected(tmp_path / "labels", synthetic)
    for path in (labels / "data").glob("*.parquet"):  # hands as small as in scenes, some with two per photo
        table = pq.read_table(path)
        boxes = [row and [5, 5, 25, 20] for row in table["box_xyxy"].to_pylist()]
        column = table.schema.get_field_index("box_xyxy")
        small = table.set_column(
            column, table.schema.field(column), pa.array(boxes, pa.list_(pa.float32(), 4))
        )
        both = pa.concat_tables([small.slice(k, 1) for k in range(len(small)) for _ in range(2)])
        pq.write_table(both, path)
    summary = convert(f"labels:{labels}", str(tmp_path / "out"), empty=1.0)
    rows = rows_of(tmp_path / "out")
    empties = [row for row in rows if row["status"] == "no_hand"]
    assert (summary.examples, len(empties)) == (16 + 9, 9)  # one per photo with a hand, also of unknown side
    for row in empties:
        x1, y1, x2, y2 = row["box_xyxy"]
        assert (x1 > 25 or y1 > 20) and x1 >= 0 and y1 >= 0 and x2 <= 96 and y2 <= 96
        assert row["joints2d_px"] is None and row["is_right"] is None and row["image"]
    batch, _ = next(
        StoredExamples(str(tmp_path / "out"), load_hand("open"), 32, SourceConfig(), seed=0).in_order(99)
    )
    assert (~batch.has_hand).sum() == 9
    assert not batch.has_joints2d[~batch.has_hand].any() and not batch.hand_mask[~batch.has_hand].any()
    with pytest.raises(UserError, match="leave it out for synth"):
        convert(f"synth:{synthetic}", str(tmp_path / "other"), empty=0.5)
    with pytest.raises(UserError, match="must be a share from 0 to 1"):
        convert(f"labels:{labels}", str(tmp_path / "other"), empty=2)


def test_a_detector_s_3d_joints_are_kept_as_a_guess(synthetic: Path, tmp_path: Path) -> None:
    labels = detected(tmp_path / "labels", synthetic)
    truth = {row["image_id"]: row for row in pq.read_table(synthetic / "truth.parquet").to_pylist()}
    for path in (labels / "data").glob("*.parquet"):
        table = pq.read_table(path)
        column = table.schema.get_field_index("joints3d_mm")
        joints = [
            truth[row["image_id"]]["joints3d_mm"] if row["box_xyxy"] else None for row in table.to_pylist()
        ]
        field = table.schema.field(column)
        pq.write_table(table.set_column(column, field, pa.array(joints, field.type)), path)
    convert(f"labels:{labels}", str(tmp_path / "out"))
    for row in rows_of(tmp_path / "out"):
        assert row["joints3d_mm"] is None
        assert row["guess3d_mm"] == truth[row["image_id"]]["joints3d_mm"]
    stored = StoredExamples(str(tmp_path / "out"), load_hand("open"), 32, SourceConfig(), seed=0)
    batch, _ = next(stored.in_order(99))
    assert batch.has_guess3d.all() and not batch.has_joints3d.any()
    assert (chirality(batch.guess3d_mm.numpy()) > 0).all()  # left hands arrive mirrored


def test_missing_damaged_and_mixed_labels_are_named(labelled: Any, synthetic: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"holds no labels .data/\*.parquet."):
        convert(f"labels:{synthetic}", out)
    with pytest.raises(UserError, match=r"truth.parquet' does not exist"):
        convert(f"synth:{tmp_path}", out)
    labels = detected(tmp_path / "labels", synthetic)
    first = labels / "data" / "shard-0.parquet"
    shutil.copy(next((labelled[0] / "data").glob("*.parquet")), labels / "data" / "other.parquet")
    with pytest.raises(UserError, match="uses hand model None, other files use open-"):
        convert(f"labels:{labels}", out)
    (labels / "data" / "other.parquet").unlink()
    table = pq.read_table(first)
    pq.write_table(table.drop_columns(["is_right"]), first)
    with pytest.raises(UserError, match=r"shard-0.parquet: is_right: missing column"):
        convert(f"labels:{labels}", out)
    first.write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"shard-0.parquet' is damaged, or not a label file"):
        convert(f"labels:{labels}", out)
    for version, words in ((3, "update amvur"), (1, "label the photos again")):
        facts = {"amvur": json.dumps({"schema_version": version})}
        pq.write_table(table.replace_schema_metadata(facts), first)
        with pytest.raises(UserError, match=f"has label schema {version}.*{words}"):
            convert(f"labels:{labels}", out)


def test_labels_are_no_truth_and_their_std_is_reported(
    labelled: Any, lively_file: str, tmp_path: Path
) -> None:
    """By its own labels a network has no error at all."""
    labels, _, _ = labelled
    summary = convert(f"labels:{labels}", str(tmp_path / "own"))
    assert summary.std_note.startswith("their std is not calibrated")
    for judge in (evaluate, calibrate):
        with pytest.raises(UserError, match="holds predicted labels.*'synth'"):
            judge(lively_file, str(tmp_path / "own"), str(tmp_path / "out.safetensors"))
    assert not list(tmp_path.glob("out.safetensors/*"))  # the output folder of `evaluate`
    constant = tmp_path / "constant"
    shutil.copytree(labels, constant)
    for path in (constant / "data").iterdir():
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[b"amvur"]) | {"std_is_constant": True}
        pq.write_table(table.replace_schema_metadata({"amvur": json.dumps(facts)}), path)
    assert convert(f"labels:{constant}", str(tmp_path / "one")).std_note.startswith(
        "their std is one constant"
    )
    weak = tmp_path / "weak"
    shutil.copytree(labels, weak)
    calibration = {"joints2d": {"scale": 2.0, "exponent": 1.0}, "fitted_on": "photos, 30 photos: joints2d"}
    for path in (weak / "data").iterdir():
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[b"amvur"]) | {"calibration": calibration}
        pq.write_table(table.replace_schema_metadata({"amvur": json.dumps(facts)}), path)
    note = convert(f"labels:{weak}", str(tmp_path / "two")).std_note
    assert note.startswith("their std is calibrated in 2D only, on photos, 30 photos: joints2d")
    with pytest.raises(UserError, match="has one std for all hands"):
        filter_labels(str(constant), str(tmp_path / "best"), Keep(keep_best=0.5))


def test_a_killed_conversion_is_refused_as_a_data_set(synthetic: Path, tmp_path: Path, monkeypatch) -> None:
    def killed(out: str, rows, schema) -> int:
        write_examples(out, [next(rows)], schema)
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.convert.convert.write_examples", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(f"synth:{synthetic}", str(tmp_path))
    with pytest.raises(UserError, match="unfinished conversion"):
        StoredExamples(str(tmp_path), load_hand("open"), 32, SourceConfig(source=str(tmp_path)), seed=0)


def test_labels_rewritten_with_other_types_are_refused_in_one_line(synthetic: Path, tmp_path: Path) -> None:
    table = pq.read_table(synthetic / "truth.parquet")
    place = table.schema.get_field_index("vertices_mm")
    loose = table["vertices_mm"].cast(pa.list_(pa.list_(pa.float32(), 3)))
    pq.write_table(table.set_column(place, "vertices_mm", loose), tmp_path / "truth.parquet")
    with pytest.raises(UserError, match="vertices_mm: not a fixed-size list"):
        convert(f"synth:{tmp_path}", str(tmp_path / "out"))
