"""From the official archives to submissions; and the official evaluators' scores of those files are our metrics."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import cKDTree

from annotator.export.benchmark_files import BENCHMARKS, write_submission
from annotator.hand import load_hand
from annotator.quality import metrics
from tests.support.dataset_fixtures import write_freihand, write_ho3d
from tests.support.mano_file import write_mano_file
from trainer.config import SourceConfig
from trainer.convert.convert import convert
from trainer.data.stored import StoredExamples

#: Photos of the small evaluation splits.
COUNT = 3

TINY = [
    *("network.backbone=efficientnet_lite0", "network.imagenet=false", "network.crop_px=48"),
    *(
        "network.amvur.tokens=32",
        "network.amvur.width=64",
        "network.amvur.blocks=1",
        "network.amvur.stages=1",
    ),
    *("network.texture.tokens=32", "network.texture.width=16", "network.texture.raster_px=32"),
    *("batch_size=4", "steps=2", "loaders=0", "log_every=1"),
]


@pytest.fixture(scope="module")
def mano_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mano") / "MANO_RIGHT.pkl"
    write_mano_file(path)
    return path


def write_archive(name: str, folder: Path, mano: Any) -> None:
    if name == "freihand":
        write_freihand(folder, mano, evaluation=COUNT)
    else:
        write_ho3d(folder, mano, int(name[-1]), truth=True, frames=COUNT)


def official_scores(folder: Path, pred: Path, scale_joint: int | None) -> dict[str, float]:
    """The lines of `scores.txt` by the formulas of FreiHAND's eval.py, and of HO3D's, which adds one alignment.

    Compared line by line with FreiHAND's at commit 0808a4d and HO3D's at 027df19. Both need `open3d-python` for
    distances between point clouds, and Python 3.11 can't import it.

    Lengths in centimetres. Files: evaluation_{xyz,verts}.json in `folder`, and pred.json.
    """
    truth = [json.loads((folder / f"evaluation_{kind}.json").read_text()) for kind in ("xyz", "verts")]
    scores: dict[str, float] = {}
    for kind, true, predicted in zip(("xyz", "mesh"), truth, json.loads(pred.read_text()), strict=True):
        assert len(true) == len(predicted)
        aligned, scaled, f_scores = [], [], []
        for y, x in zip(map(np.array, true), map(np.array, predicted), strict=True):
            y0, x0 = y - y.mean(0), x - x.mean(0)
            rotation, scale = orthogonal_procrustes(y0 / np.linalg.norm(y0), x0 / np.linalg.norm(x0))
            aligned.append(x0 / np.linalg.norm(x0) @ rotation.T * scale * np.linalg.norm(y0) + y.mean(0))
            if scale_joint is not None:
                bones = [np.linalg.norm(one[scale_joint] - one[0]) for one in (y, x)]
                scaled.append((x - x[0]) * bones[0] / bones[1] + y[0])
            tree = cKDTree(y)
            for one in (x, aligned[-1]):
                to_truth, to_predicted = tree.query(one)[0], cKDTree(one).query(y)[0]
                for limit in (0.005, 0.015):
                    share = [(to_truth < limit).mean(), (to_predicted < limit).mean()]
                    f_scores.append(2 * share[0] * share[1] / sum(share) if sum(share) else 0.0)
        kinds = {kind: predicted, f"{kind}_al": aligned}
        if kind == "xyz" and scale_joint is not None:
            kinds["xyz_scale_trans_al"] = scaled
        for name, points in kinds.items():
            errors = np.linalg.norm(np.array(points) - np.array(true), axis=-1)
            scores[f"{name}_mean3d"] = 100 * errors.mean(0).mean()
            limits = np.linspace(0.0, 0.05, 100)
            curve = np.mean([(errors <= limit).mean(0) for limit in limits], axis=1)
            scores[f"{name}_auc3d"] = (curve[1:] + curve[:-1]).mean() / 2  # trapezoids of equal width
        if kind == "mesh":
            names = ("f_score_5", "f_score_15", "f_al_score_5", "f_al_score_15")
            scores |= dict(zip(names, np.reshape(f_scores, (-1, 4)).mean(0), strict=True))
    return scores


def our_scores(folder: Path, pred: Path) -> dict[str, float]:
    """The same by this project's metrics, in millimetres; joints in our order."""
    joints, vertices = (1000 * np.array(one) for one in json.loads(pred.read_text()))
    xyz, verts = (
        1000 * np.array(json.loads((folder / f"evaluation_{kind}.json").read_text()))
        for kind in ("xyz", "verts")
    )
    scores: dict[str, float] = {}
    for kind, predicted, true in (("xyz", joints, xyz), ("mesh", vertices, verts)):
        alignments = {kind: predicted, f"{kind}_al": metrics.align(predicted, true)}
        for name, points in alignments.items():
            errors = metrics.distances(points, true)
            scores |= {f"{name}_mean3d": errors.mean() / 10, f"{name}_auc3d": metrics.auc_of_pck(errors)}
            if kind == "mesh":
                five, fifteen = metrics.f_score(points, true).mean(0)
                prefix = "f_al" if name == "mesh_al" else "f"
                scores |= {f"{prefix}_score_5": five, f"{prefix}_score_15": fifteen}
    return scores


@pytest.mark.parametrize("name", ["freihand", "ho3d_v2", "ho3d_v3"])
def test_official_scores_of_a_submission_are_ours_to_six_digits(
    name: str, mano_path: Path, tmp_path: Path
) -> None:
    mano = load_hand(f"mano:{mano_path}")
    data, out = tmp_path / "data", str(tmp_path / "out")
    write_archive(name, data, mano)
    convert(f"{name.partition('_')[0]}:{data}", out, f"mano:{mano_path}", split="evaluation")
    stored = StoredExamples(out, mano, 32, SourceConfig(source=out), seed=0)
    hands = sorted(
        (fact.source_index, batch.joints3d_mm[k].numpy(), batch.vertices_mm[k].numpy())
        for batch, facts in stored.in_order(8)
        for k, fact in enumerate(facts)
    )
    rng = np.random.default_rng(1)
    joints, vertices = (np.stack(one) for one in list(zip(*hands, strict=True))[1:])
    size = np.array([2.0, 7.0, 20.0])[:, None, None]
    joints = joints + size * rng.normal(size=joints.shape)
    vertices = vertices + size * rng.normal(size=vertices.shape)
    wrists = np.array([[10.0, -20, 560], [0, 0, 500], [30, -10, 540]])
    benchmark = dataclasses.replace(BENCHMARKS[name], entries=COUNT)
    write_submission(str(tmp_path), benchmark, joints, vertices, wrists)
    official = official_scores(data, tmp_path / "pred.json", None if name == "freihand" else 4)
    ours = our_scores(data, tmp_path / "pred.json")
    assert ours == {key: pytest.approx(official[key], abs=1e-6) for key in ours}
    assert 0.05 < official["f_al_score_5"] < 0.95 and 0.05 < official["xyz_al_auc3d"] < 0.95
    if name != "freihand":
        xyz, true = (
            1000 * np.array(one)[:, _OURS_FROM_HO3D]
            for one in (
                json.loads((tmp_path / "pred.json").read_text())[0],
                json.loads((data / "evaluation_xyz.json").read_text()),
            )
        )
        errors = metrics.distances(metrics.align_wrist_and_scale(xyz, true), true)
        assert errors.mean() / 10 == pytest.approx(official["xyz_scale_trans_al_mean3d"], abs=1e-6)
        assert metrics.auc_of_pck(errors) == pytest.approx(official["xyz_scale_trans_al_auc3d"], abs=1e-6)


#: HO3D's 21 joints in our order: wrist, then each finger from thumb to little, then its tip.
_OURS_FROM_HO3D = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["freihand", "ho3d_v2", "ho3d_v3"])
def test_one_command_leads_from_the_archive_to_the_submission(
    name: str, mano_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    benchmark = importlib.import_module("submit_benchmark")
    data, out = tmp_path / "archive", tmp_path / "out"
    write_archive(name, data, load_hand(f"mano:{mano_path}"))
    if name == "freihand":  # two archives
        (tmp_path / "archive_eval").mkdir()
        for path in list(data.glob("evaluation*")):
            shutil.move(path, tmp_path / "archive_eval" / path.name)
    monkeypatch.setitem(BENCHMARKS, name, dataclasses.replace(BENCHMARKS[name], entries=COUNT))
    command = [f"{name}:{data}", str(out), "--hand", f"mano:{mano_path}", "--device", "cpu"]
    command += [part for setting in TINY for part in ("--set", setting)]
    benchmark.run(command)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet") if "results" not in path.parts}
    with zipfile.ZipFile(out / "results/pred.zip") as packed:
        packed.extractall(tmp_path / "sent")
    truth = tmp_path / "archive_eval" if name == "freihand" else data
    official = official_scores(truth, tmp_path / "sent/pred.json", None if name == "freihand" else 4)
    found = json.loads((out / "results/metrics.json").read_text())
    # Examples are rounded to a thirty-second of a millimetre.
    assert found["vertices"]["pa_mpvpe_mm"] == pytest.approx(10 * official["mesh_al_mean3d"], abs=0.02)
    assert found["vertices"]["pa_f15"] == pytest.approx(official["f_al_score_15"], abs=0.005)
    assert found["vertices"]["pa_auc"] == pytest.approx(official["mesh_al_auc3d"], abs=1e-3)
    if name == "freihand":  # HO3D's tips are other vertices than ours
        assert found["joints3d"]["pa_mpjpe_mm"] == pytest.approx(10 * official["xyz_al_mean3d"], abs=0.02)
        assert found["joints3d"]["pa_auc"] == pytest.approx(official["xyz_al_auc3d"], abs=2e-3)
    # The same command again trains no further step and converts nothing.
    shutil.rmtree(out / "results")
    benchmark.run(command)
    assert (out / "results/pred.zip").is_file()
    assert {path: path.stat().st_mtime_ns for path in made} == made
