"""Exports prepared by Ray tasks: the same bytes as in one process, in the same order, also if a process dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest

from annotator.export import export_labels, meshes
from annotator.export import webdataset as tars
from tests.export.test_export import scene  # noqa: F401 - a fixture

REAL_WRITE = meshes._MeshFiles.write


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("to", ["webdataset", "glb", "ply"])
def test_tasks_write_the_same_bytes(scene, local_ray, to, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(tars, "_PHOTOS_AT_ONCE", 1)
    one = export_labels(str(scene), str(tmp_path / "one"), to, workers=1)
    many = export_labels(str(scene), str(tmp_path / "many"), to, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert one == many and one.hands == (7 if to == "webdataset" else 8)  # a photo is missing


def test_a_task_whose_process_dies_is_repeated(scene, local_ray, tmp_path, monkeypatch):  # noqa: F811
    mark = tmp_path / "died"

    def dying_once(files: meshes._MeshFiles, table: pa.Table, stems: list[str]) -> int:
        count = REAL_WRITE(files, table, stems)
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    export_labels(str(scene), str(tmp_path / "one"), "ply", workers=1)
    monkeypatch.setattr(meshes._MeshFiles, "write", dying_once)
    assert export_labels(str(scene), str(tmp_path / "many"), "ply", workers=2).hands == 8
    assert mark.exists()
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
