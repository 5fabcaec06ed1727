"""Processes that crash, because of a photo or by accident: nothing is lost, and other photos keep their labels."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

import annotator.commands.annotate
from annotator import UserError, annotate
from annotator.job.options import ComputeOptions
from annotator.job.shard import Shard
from annotator.job.stages import decode_shard
from tests.conftest import SMALL
from tests.robustness.hostile_photos import encoded, noise

pytestmark = pytest.mark.slow

POISON = b"ends the process that reads it"


def open_or_abort(entries, **settings) -> Shard:
    """Abort the process as a decoder with a bug does."""
    for entry in entries:
        with suppress(OSError):
            if Path(entry.path).read_bytes().endswith(POISON):
                os.abort()
    return decode_shard(entries, **settings)


def open_or_hang(entries, **settings) -> Shard:
    for entry in entries:
        if Path(entry.path).read_bytes().endswith(POISON):
            time.sleep(10_000)
    return decode_shard(entries, **settings)


def rows_of(labels: Path) -> list[dict]:
    return pq.read_table(labels / "data").to_pylist()


def test_a_photo_that_crashes_its_process_is_recorded_and_costs_no_other_photo(
    labelled, photos, lively_file, tmp_path, monkeypatch
):
    undisturbed, _, _ = labelled
    poisoned, labels = tmp_path / "photos", tmp_path / "labels"
    shutil.copytree(photos, poisoned)
    for name in ("right/006.jpg", "right/008.jpg", "left/049.jpg"):
        with (poisoned / name).open("ab") as file:
            file.write(POISON)
    monkeypatch.setattr(annotator.commands.annotate, "decode_shard", open_or_abort)
    record = annotate(str(poisoned), str(labels), checkpoint=lively_file, compute=SMALL)
    assert record.outcomes == {"failed: crashed": 3, "ok": 47}
    # The shard twice, then each of the three photos three times.
    assert record.retries == {"process died": 2 + 3 * 3}
    assert [error for _, error in record.failed] == ["every process that decoded this photo crashed"] * 3
    bad = {"right/006.jpg", "right/008.jpg", "left/049.jpg"}
    for row, expected in zip(rows_of(labels), rows_of(undisturbed), strict=True):
        assert row["image_id"] == expected["image_id"]
        if row["image_id"] in bad:
            assert (row["status"], row["reason"], row["vertices_mm"]) == ("failed", "crashed", None)
        else:  # batches of other sizes round differently
            np.testing.assert_allclose(row["vertices_mm"], expected["vertices_mm"], atol=1 / 16)
            assert (row["status"], row["is_right"]) == ("ok", expected["is_right"])
    # Repaired photos are labelled; no other photo is labelled again.
    monkeypatch.undo()
    for name in bad:
        shutil.copy(photos / name, poisoned / name)
    before = {p.name: p.stat().st_mtime_ns for p in (labels / "data").iterdir()}
    second = annotate(
        str(poisoned), str(labels), checkpoint=lively_file, compute=SMALL, relabel="status == failed"
    )
    assert second.outcomes == {"ok": 50} and second.failed == []
    after = {p.name: p.stat().st_mtime_ns for p in (labels / "data").iterdir()}
    assert len([name for name in after if after[name] != before[name]]) == 1
    for row, expected in zip(rows_of(labels), rows_of(undisturbed), strict=True):
        assert row["image_id"] == expected["image_id"]
        np.testing.assert_allclose(row["vertices_mm"], expected["vertices_mm"], atol=1 / 16)


def test_a_photo_that_hangs_its_process_is_recorded(photos, lively_file, tmp_path, monkeypatch):
    few, labels = tmp_path / "photos", tmp_path / "labels"
    few.mkdir()
    for k in range(3):
        (few / f"{k}.jpg").write_bytes(encoded(noise(), "JPEG") + POISON * (k == 1))
    monkeypatch.setattr(annotator.commands.annotate, "decode_shard", open_or_hang)
    monkeypatch.setattr("annotator.job.failures.HANG_S", 2.0)
    monkeypatch.setattr("annotator.job.failures.HANG_PER_PHOTO_S", 0.2)
    record = annotate(str(few), str(labels), checkpoint=lively_file, compute=SMALL)
    assert record.outcomes == {"failed: crashed": 1, "ok": 2}


def models() -> list[psutil.Process]:
    actors = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::WorkerActor"):
                actors.append(process)
    return actors


def test_killed_models_cost_time_but_no_labels(labelled, photos, lively_file, tmp_path):
    undisturbed, _, _ = labelled
    killed: list[int] = []

    def kill(progress) -> None:
        for process in models() if progress.photos else []:
            if len(killed) < 2 and process.pid not in killed:
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)

    compute = ComputeOptions(threads=1, shard_size=4)
    record = annotate(
        str(photos), str(tmp_path / "labels"), checkpoint=lively_file, compute=compute, on_progress=kill
    )
    assert record.outcomes == {"ok": 50} and len(killed) == 2 and record.retries["process died"] >= 2
    for row, expected in zip(rows_of(tmp_path / "labels"), rows_of(undisturbed), strict=True):
        assert row["image_id"] == expected["image_id"]
        np.testing.assert_allclose(row["vertices_mm"], expected["vertices_mm"], atol=1 / 16)


def test_a_model_that_always_dies_ends_the_run_with_one_line(photos, lively_file, tmp_path, local_ray):
    labels, over = tmp_path / "labels", threading.Event()

    def kill() -> None:
        while not over.wait(0.02):
            for process in models():
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(
            UserError, match=r"workers died 5 times without finishing a shard .* again to resume"
        ) as e:
            annotate(str(photos), str(labels), checkpoint=lively_file, compute=SMALL)
    finally:
        over.set()
        killer.join()
    assert "\n" not in str(e.value)
    assert annotate(str(photos), str(labels), checkpoint=lively_file, compute=SMALL).outcomes == {"ok": 50}


def test_labels_that_cannot_be_written_for_a_while_or_at_all(photos, lively_file, tmp_path, monkeypatch):
    # A folder in place of the first shard's file fails like a full disk, for root too.
    monkeypatch.setattr("annotator.job.failures.PAUSE_S", 0.5)
    labels = tmp_path / "labels"
    compute = ComputeOptions(threads=1, shard_size=64)

    def block(progress) -> None:
        if progress.photos == 0:
            (labels / "data" / "shard-0000000.parquet" / "in the way").mkdir(parents=True)

    with pytest.raises(
        UserError, match=r"could not be read or written: .*run the same command again to resume"
    ) as error:
        annotate(str(photos), str(labels), checkpoint=lively_file, compute=compute, on_progress=block)
    assert "\n" not in str(error.value) and not (labels / "_lease.json").exists()
    in_the_way = labels / "data" / "shard-0000000.parquet"
    shutil.rmtree(in_the_way)

    def block_for_a_while(progress) -> None:
        block(progress)
        threading.Timer(2.0, shutil.rmtree, [in_the_way], {"ignore_errors": True}).start()

    record = annotate(
        str(photos), str(labels), checkpoint=lively_file, compute=compute, on_progress=block_for_a_while
    )
    assert record.outcomes == {"ok": 50}
