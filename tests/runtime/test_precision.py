"""Precisions of a job: labels of a job equal the predictor's, and a device that does not gain is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from annotator import UserError, load
from annotator.commands.annotate import annotate
from annotator.job.options import ComputeOptions
from annotator.labels.arrays import array_of
from annotator.runtime.precision import check_precision
from tests.commands.test_cli import run
from trainer.synth import write_photos

HAS_BF16 = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def vertices_mm(labels: Path) -> np.ndarray:
    return array_of(pq.read_table(labels / "data").sort_by("image_id")["vertices_mm"])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BF16, reason="this machine has no instructions for bfloat16")
def test_a_job_in_bfloat16_stays_within_two_millimetres(tmp_path, local_ray):
    write_photos(tmp_path / "hands", 16, 0, 128)
    photos = sorted((tmp_path / "hands" / "images").iterdir())
    annotate(
        str(tmp_path / "hands" / "images"),
        str(tmp_path / "half"),
        checkpoint="fast",
        side="right",
        precision="bfloat16",
        compute=ComputeOptions(threads=1),
    )
    whole = np.stack([row["vertices_mm"] for row in load("fast").predict(photos, side="right")])
    off_mm = np.linalg.norm(whole - vertices_mm(tmp_path / "half"), axis=-1)
    assert 0.01 < off_mm.mean() < 2 and np.median(off_mm) < 1.5  # labels are rounded to 1/16 mm
    settings = json.loads((tmp_path / "half" / "_run.json").read_text())["settings"]
    assert settings["precision"] == "bfloat16"
    with pytest.raises(UserError, match="was labelled with precision 'bfloat16', this run has 'float32'"):
        annotate(str(tmp_path / "hands" / "images"), str(tmp_path / "half"), checkpoint="fast", side="right")


@pytest.mark.skipif(torch.cuda.is_available(), reason="float16 is for this machine's GPU")
def test_float16_on_cpus_is_refused_before_a_folder_is_made(photos, tmp_path, monkeypatch, capsys):
    code, _, error = run(monkeypatch, capsys, "annotate", photos, tmp_path / "l", "--precision", "float16")
    assert code == 2 and not (tmp_path / "l").exists()
    assert error == (
        "amvur: float16 is several times slower than float32 on CPUs, and there is no GPU: leave out --precision\n"
    )
    with pytest.raises(UserError, match="precision is 'fp8', may be float32, float16, bfloat16, int8"):
        check_precision("fp8")
    check_precision("float32")


def test_a_folder_of_an_older_version_resumes_in_float32(labelled, photos, lively_file, tmp_path, local_ray):
    import shutil

    labels = shutil.copytree(labelled[0], tmp_path / "labels")
    record = json.loads((labels / "_run.json").read_text())
    del record["settings"]["precision"]
    (labels / "_run.json").write_text(json.dumps(record))
    before = {path.name: path.stat().st_mtime_ns for path in (labels / "data").iterdir()}
    annotate(str(photos), str(labels), checkpoint=lively_file)
    assert {path.name: path.stat().st_mtime_ns for path in (labels / "data").iterdir()} == before
    assert load(lively_file).precision == "float32"
