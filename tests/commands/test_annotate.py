"""The job, on a real Ray: every photo accounted for, resumable after any kill, the same numbers as Python."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotator import UserError, annotate
from annotator.job.options import ComputeOptions
from annotator.job.resources import TASK_CPUS, cpus_of_an_actor
from annotator.labels.schema import REASONS, label_schema
from annotator.sources import FolderSource
from tests.conftest import SMALL
from tests.robustness.hostile_photos import encoded, noise, write_hostile_photos

pytestmark = pytest.mark.slow


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows(labels: Path):
    return duckdb.sql(f"select image_id, status, reason from '{labels}/data/*.parquet'").fetchall()


def test_every_photo_has_one_row_and_all_columns_are_filled(labelled, photos):
    labels, record, reported = labelled
    table = pq.read_table(labels / "data")
    assert sorted(table["image_id"].to_pylist()) == sorted(
        str(p.relative_to(photos)) for p in photos.rglob("*.jpg")
    )
    assert record.outcomes == {"ok": 50} and record.photos == 50
    assert [p.name for p in sorted((labels / "data").iterdir())] == [
        f"shard-{n:07d}.parquet" for n in range(4)
    ]
    assert table.schema.equals(label_schema(record.settings.vertex_count))
    nullable = {"frame_index", "frame_time_s", "reason", "error", "landmark_depth_px", "penetration_mm"}
    nullable |= {"joint_visible", "joint_visible_score", "hidden_joints"}  # these weights have no such head
    empty = {name for name in table.column_names if table[name].null_count}
    assert empty == nullable
    assert reported[-1].photos == reported[-1].total == 50
    facts = json.loads(table.schema.metadata[b"amvur"])
    assert facts["hand"] == record.settings.hand and facts["trained_steps"] == 1


def test_what_is_beside_the_rows_is_what_labels_md_says(labelled):
    labels, record, _ = labelled
    assert sorted(p.name for p in labels.iterdir()) == [
        *("_entries", "_outcomes", "_run.json", "data", "faces.parquet")
    ]
    faces = duckdb.sql(f"select * from '{labels}/faces.parquet'").fetchall()
    assert np.array(faces).max() == record.settings.vertex_count - 1
    assert json.loads((labels / "_run.json").read_text())["outcomes"] == {"ok": 50}


def test_python_gives_the_jobs_numbers(labelled, photos, lively):
    """From paths; an array is the same photo unless it is a large JPEG, which the job decodes smaller."""
    labels, _, _ = labelled
    table = pq.read_table(labels / "data").slice(10, 20).to_pylist()
    assert max(row["width"] for row in table) == 700
    vertices = np.array([row["vertices_mm"] for row in table])
    assert np.abs(vertices[0] - vertices[1:]).max((1, 2)).min() > 4 / 16  # every photo shows another hand
    predicted = lively.predict([photos / row["image_id"] for row in table])
    for row, label in zip(table, predicted, strict=True):
        np.testing.assert_allclose(row["vertices_mm"], label["vertices_mm"], atol=1 / 16)
        np.testing.assert_allclose(row["joints3d_mm"], label["joints3d_mm"], atol=1 / 16)
        np.testing.assert_allclose(row["joints2d_px"], label["joints2d_px"], atol=1 / 16)
        np.testing.assert_allclose(row["vertices_std_mm"], label["vertices_std_mm"], atol=1 / 8)
        assert np.abs(np.subtract(row["vertex_rgb"], label["vertex_rgb"].astype(int))).max() <= 1
        assert row["is_right"] == label["is_right"]
        np.testing.assert_allclose(row["camera"]["cam_t_mm"], label["camera"]["cam_t_mm"], rtol=1e-3)
        np.testing.assert_allclose(row["crop_xyxy"], label["crop_xyxy"])
        np.testing.assert_allclose(row["pose"], label["pose"], atol=1e-3)
    small = next(row for row in table if row["width"] == 60)
    with Image.open(photos / small["image_id"]) as file:
        from_array = lively.predict([np.asarray(file)])[0]
    np.testing.assert_allclose(small["vertices_mm"], from_array["vertices_mm"], atol=1 / 16)


def test_meshes_are_drawn_where_they_are_asked_for(photos, lively, lively_file, tmp_path, local_ray):
    """Draws of a job equal those of the Python API for any shards and batches; without them the columns are absent."""
    labels = tmp_path / "labels"
    annotate(str(photos / "left"), str(labels), checkpoint=lively_file, samples=2, compute=SMALL)
    table = pq.read_table(labels / "data")
    assert table.schema.equals(label_schema(lively.checkpoint.hand.vertex_count, samples=2))
    facts = json.loads(table.schema.metadata[b"amvur"])
    assert facts["shapes"]["vertices_samples_mm"] == [2, lively.checkpoint.hand.vertex_count, 3]
    table = table.slice(3, 6).to_pylist()
    predicted = lively.predict([photos / "left" / row["image_id"] for row in table], samples=3)
    for row, label in zip(table, predicted, strict=True):
        for name in ("vertices_samples_mm", "joints3d_samples_mm"):
            np.testing.assert_allclose(row[name], label[name][:2], atol=facts["rounding"][name] + 0.1)
    with pytest.raises(UserError, match="was labelled with samples 2, this run has 0"):
        annotate(str(photos / "left"), str(labels), checkpoint=lively_file, compute=SMALL)
    with pytest.raises(UserError, match="samples is 65: give 0 to 64"):
        annotate(str(photos), str(tmp_path / "new"), checkpoint=lively_file, samples=65, compute=SMALL)


def test_running_again_when_all_is_done_changes_no_file(labelled, photos, lively_file):
    labels, record, _ = labelled
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in labels.rglob("*")}
    started = time.monotonic()
    again = annotate(str(photos), str(labels), checkpoint=lively_file, compute=SMALL)
    assert time.monotonic() - started < 10
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in labels.rglob("*")} == before
    assert again == record


def test_a_shard_that_is_missing_is_made_again_byte_for_byte(labelled, photos, lively_file, tmp_path):
    labels, record, _ = labelled
    copy = tmp_path / "labels"
    shutil.copytree(labels, copy)
    (copy / "data" / "shard-0000002.parquet").unlink()
    again = annotate(str(photos), str(copy), checkpoint=lively_file, compute=SMALL)
    assert again.outcomes == record.outcomes
    assert contents(copy / "data") == contents(labels / "data")


def test_photos_added_later_are_labelled_and_the_others_left_alone(local_ray, photos, tmp_path):
    more, copy = tmp_path / "photos", tmp_path / "labels"
    shutil.copytree(photos, more)
    first = annotate(str(more), str(copy), compute=SMALL)
    before = contents(copy / "data")
    (more / "a new one.jpg").write_bytes(encoded(noise(), "JPEG"))
    record = annotate(str(more), str(copy), compute=SMALL)
    after = contents(copy / "data")
    assert first.photos == 50 and record.photos == 51
    assert {name: after[name] for name in before} == before and len(after) == 5


def test_every_hostile_photo_ends_in_one_row_that_says_what_became_of_it(tmp_path, local_ray):
    folder, labels = tmp_path / "photos", tmp_path / "labels"
    folder.mkdir()
    expected = write_hostile_photos(folder)
    expected["clip.mp4"] = "truncated"  # here a video, of which nothing but the beginning is there
    source = FolderSource(str(folder))
    listed = list(source)
    assert len(listed) + source.skipped_count == len(expected)
    record = annotate(str(folder), str(labels), compute=ComputeOptions(threads=1, shard_size=32))
    found = duckdb.sql(
        f"select image_id, status, reason, error, vertices_mm is null from '{labels}/data/*.parquet'"
    ).fetchall()
    assert sorted(row[0] for row in found) == sorted(entry.id for entry in listed)
    by_readable = {
        os.fsencode(name).decode("utf-8", "backslashreplace"): outcome for name, outcome in expected.items()
    }
    for name, status, reason, error, no_mesh in found:
        outcome = by_readable[name]
        assert status in ("ok", "no_hand", "unreadable", "failed") and (reason is None or reason in REASONS)
        assert (status, reason) == (("ok", None) if outcome == "ok" else ("unreadable", outcome)), name
        assert no_mesh == (outcome != "ok") and (error is None) == (outcome == "ok")
    assert record.photos == len(listed)


def interrupted(signal_number: int, photos, lively_file, labels: Path) -> tuple[int, str]:
    """Signal a run's driver as soon as its first shard is there; return its exit code and stderr."""
    options = ("--workers", "1", "--threads", "1", "--shard-size", "16", "--checkpoint", lively_file)
    with tempfile.TemporaryFile("w+") as stderr:  # a pipe stays open as long as Ray's processes
        driver = subprocess.Popen(
            [sys.executable, "-m", "cli", "annotate", str(photos), str(labels), *options],
            cwd=Path(__file__).parents[2],
            stderr=stderr,
            start_new_session=True,
        )
        while not list(labels.glob("data/*.parquet")):
            assert driver.poll() is None
            time.sleep(0.02)
        driver.send_signal(signal_number)
        code = driver.wait()
        stderr.seek(0)
        return code, stderr.read()


@pytest.mark.parametrize(
    ("signal_number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_an_interrupted_driver_loses_nothing_and_repeats_nothing(
    signal_number, code, labelled, photos, lively_file, tmp_path
):
    """Interrupt as soon as the first shard is there; then to the end. (`tests/robustness/test_chaos.py` has more.)"""
    undisturbed, _, _ = labelled
    for attempt in range(3):
        labels = tmp_path / f"labels-{attempt}"
        found, error = interrupted(signal_number, photos, lively_file, labels)
        if found:  # else the run ended before the signal, as it may on a busy machine
            break
    assert found == code
    if signal_number != signal.SIGKILL:
        last = error.splitlines()[-1]
        assert last == "amvur: stopped; run the same command again to resume" and "Traceback" not in error
        assert not (labels / "_lease.json").exists()
    committed = contents(labels / "data")
    assert 1 <= len(committed) <= 4
    times = {p.name: p.stat().st_mtime_ns for p in (labels / "data").iterdir()}
    record = annotate(str(photos), str(labels), checkpoint=lively_file, compute=SMALL)
    assert record.outcomes == {"ok": 50}
    assert contents(labels / "data") == contents(undisturbed / "data")
    assert {name: (labels / "data" / name).stat().st_mtime_ns for name in times} == times
    assert len(rows(labels)) == 50 and not (labels / "_tmp").exists()


def test_labels_of_one_kind_only(labelled, photos, lively_file, tmp_path):
    labels, _, _ = labelled
    with pytest.raises(UserError, match="was labelled with side 'auto', this run has 'left'"):
        annotate(str(photos), str(labels), checkpoint=lively_file, side="left", compute=SMALL)
    with pytest.raises(UserError, match="was labelled with checkpoint"):
        annotate(str(photos), str(labels), compute=SMALL)
    with pytest.raises(UserError, match="side is 'Left', may be auto, left, right"):
        annotate(str(photos), str(tmp_path / "new"), side="Left", compute=SMALL)
    with pytest.raises(UserError, match="was labelled with source"):
        other = tmp_path / "other"
        shutil.copytree(photos, other)
        annotate(str(other), str(labels), checkpoint=lively_file, compute=SMALL)


def test_a_damaged_label_folder_is_named(labelled, photos, lively_file, tmp_path):
    labels, _, _ = labelled

    def again(change):
        copy = tmp_path / change.__name__
        shutil.copytree(labels, copy)
        change(copy)
        annotate(str(photos), str(copy), checkpoint=lively_file, compute=SMALL)

    def cut_shard(copy):
        shutil.rmtree(copy / "_outcomes")  # which would spare reading it
        (copy / "data" / "shard-0000000.parquet").write_bytes(b"PAR1")
        (copy / "data" / "shard-0000001.parquet").unlink()

    def cut_manifest(copy):
        part = copy / "_entries" / "part-0000-000000.jsonl"
        part.write_text(part.read_text()[:-20])

    def lost_manifest(copy):
        shutil.rmtree(copy / "_entries")

    for change, words in (
        (cut_shard, "is damaged: delete it"),
        (cut_manifest, "is damaged"),
        (lost_manifest, "has labels but is missing in .*_entries'"),
    ):
        with pytest.raises(UserError, match=words):
            again(change)


def test_labels_among_the_photos_are_not_labelled(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "all")
    (tmp_path / "all" / "labels" / "report").mkdir(parents=True)
    (tmp_path / "all" / "labels" / "report" / "hand.png").write_bytes(encoded(noise(), "PNG"))
    everything, without = (
        FolderSource(str(tmp_path / "all")),
        FolderSource(str(tmp_path / "all"), leave_out=str(tmp_path / "all" / "labels")),
    )
    assert len(list(everything)) == 51 and len(list(without)) == 50


def test_real_photos_are_labelled_and_their_colours_are_on_the_mesh(sign_digits, tmp_path, local_ray):
    folder, labels = tmp_path / "photos", tmp_path / "labels"
    folder.mkdir()
    for photo in sorted(sign_digits.rglob("*.JPG"))[::60]:
        shutil.copy(photo, folder / f"{photo.parent.name} {photo.name}")
    record = annotate(str(folder), str(labels), compute=SMALL)
    assert record.outcomes == {"ok": 35}
    for row in pq.read_table(labels / "data").to_pylist():
        with Image.open(folder / row["image_id"]) as file:
            pixels = np.asarray(file).astype(int)
        seen = np.array(row["vertex_rgb"])[np.array(row["vertex_visible"])].astype(int)
        low, high = np.percentile(pixels.reshape(-1, 3), [0.5, 99.5], axis=0)
        assert (np.median(seen, 0) >= low - 3).all() and (np.median(seen, 0) <= high + 3).all()
        assert row["box_source"] == "photo" and row["width"] == row["height"] == 100


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("threads", [1, 2, 9])
@pytest.mark.parametrize("gpus", [0, 8])
def test_actors_always_leave_room_for_a_decoder(cpus, workers, threads, gpus):
    declared = cpus_of_an_actor(cpus, workers, threads, bool(gpus))
    assert declared > 0 and workers * declared + TASK_CPUS <= cpus
    with pytest.raises(UserError, match="too many for"):
        cpus_of_an_actor(cpus, 1000 * cpus, threads, bool(gpus))
