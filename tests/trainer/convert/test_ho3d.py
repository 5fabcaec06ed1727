from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import roma
import torch
from PIL import Image

from annotator.errors import UserError
from annotator.export.benchmark_files import BENCHMARKS, write_submission
from annotator.hand import load_hand
from annotator.hand.anatomy import chirality
from annotator.hand.layer import HandLayer
from tests.support.dataset_fixtures import (
    FREIHAND_TIPS,
    HO3D_TIPS,
    SIMPLE,
    dots_found,
    encoded,
    put,
    skinned,
    write_ho3d,
    write_segmentations,
)
from tests.support.mano_file import dump, write_mano_file
from trainer.config import SourceConfig
from trainer.convert.convert import ConvertSummary, convert
from trainer.convert.ho3d import ho3d_examples
from trainer.data.stored import StoredExamples

NO_TIPS = [joint for joint in range(21) if joint % 4 or not joint]
TARGETS = ("joints2d_px", "joints3d_mm", "vertices_mm", "pose", "betas")


@pytest.fixture(scope="module")
def mano_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mano") / "MANO_RIGHT.pkl"
    write_mano_file(path)
    return path


@pytest.fixture(scope="module")
def mano(mano_path: Path) -> Any:
    return load_hand(f"mano:{mano_path}")


@pytest.fixture(scope="module", params=[2, 3])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mano: Any) -> Path:
    folder = tmp_path_factory.mktemp(f"HO3D_v{request.param}")
    write_ho3d(folder, mano, request.param)
    return folder


@pytest.fixture(scope="module")
def converted(root: Path, mano_path: Path) -> tuple[Path, ConvertSummary]:
    out = root.parent / f"{root.name}-out"
    return out, convert(f"ho3d:{root}", str(out), f"mano:{mano_path}")


def rows_of(out: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(f) for f in sorted((out / "data").glob("*.parquet"))]).to_pylist()


def meta_of(root: Path, row: dict[str, Any]) -> dict[str, Any]:
    path = (root / row["image_id"].replace("/rgb/", "/meta/")).with_suffix(".pkl")
    return pickle.loads(path.read_bytes(), encoding="latin1")


def seen(meta: dict[str, Any], points: np.ndarray) -> np.ndarray:
    """HO3D's own projection: y and z change sign."""
    x, y, z = points.T
    u, v, w = meta["camMat"] @ np.stack([x, -y, -z])
    return np.stack([u / w, v / w], 1)


def dots_missed(row: dict[str, Any], meta: dict[str, Any], joints: np.ndarray) -> np.ndarray:
    """How far (px) joints lie from their dots; the photo shows HO3D's tips, those of its `joints` (21, 3)."""
    joints2d = seen(meta, joints)[SIMPLE]
    joints2d[NO_TIPS] = np.array(row["joints2d_px"])[NO_TIPS]
    return dots_found(row["image"], joints2d)


def check_tips(mano: Any, row: dict[str, Any]) -> None:
    """J3 is R V, whose tips are FreiHAND's vertices; HO3D's own lie elsewhere on index and middle."""
    joints, vertices = np.array(row["joints3d_mm"]), np.array(row["vertices_mm"])
    assert np.linalg.norm(mano.joint_regressor @ vertices - joints, axis=1).max() < 3.0
    np.testing.assert_allclose(joints[4::4], vertices[list(FREIHAND_TIPS)], atol=0.05)
    apart_mm = np.linalg.norm(joints[4::4] - vertices[list(HO3D_TIPS)], axis=1)
    assert (apart_mm[[1, 2]] > 2).all() and (apart_mm[[0, 3, 4]] < 0.05).all()
    relative = joints + row["wrist_mm"]
    tips2d = relative @ np.array(row["camera_matrix"]).T
    np.testing.assert_allclose(tips2d[:, :2] / tips2d[:, 2:], row["joints2d_px"], atol=0.1)


def test_annotated_frames_are_examples_and_the_others_are_counted(
    root: Path, converted: tuple[Path, ConvertSummary]
) -> None:
    out, summary = converted
    assert summary.examples == 4
    assert summary.left_out == {"no annotation of the hand (handJoints3D)": 2}
    listed = (root / "train.txt").read_text().split()
    for row in rows_of(out):
        assert row["image"] == (root / row["image_id"]).read_bytes()
        _, sequence, _, file = row["image_id"].split("/")
        assert listed[row["source_index"]] == f"{sequence}/{Path(file).stem}"
        assert (row["width"], row["height"], row["is_right"]) == (640, 480, True)


def test_joints_in_the_file_projected_as_ho3d_does_are_the_pixels_of_the_example(
    root: Path, converted: tuple[Path, ConvertSummary]
) -> None:
    misses = []
    for row in rows_of(converted[0]):
        meta = meta_of(root, row)
        joints2d = np.array(row["joints2d_px"])
        np.testing.assert_allclose(
            joints2d[NO_TIPS], seen(meta, meta["handJoints3D"])[SIMPLE][NO_TIPS], atol=0.05
        )
        misses.append(dots_missed(row, meta, meta["handJoints3D"]))
        x, y, z = 1000 * meta["handJoints3D"][SIMPLE].T
        points = np.stack([x, -y, -z], 1)
        np.testing.assert_allclose(
            np.array(row["joints3d_mm"])[NO_TIPS], (points - points[0])[NO_TIPS], atol=0.05
        )
        np.testing.assert_allclose(row["wrist_mm"], points[0], atol=0.05)
        assert chirality(np.array(row["joints3d_mm"])) > 0
    assert np.isfinite(misses).any(0).sum() >= 18
    assert np.nanmax(misses) < 0.7


def test_the_camera_projects_the_joints_back(converted: tuple[Path, ConvertSummary]) -> None:
    for row in rows_of(converted[0]):
        x, y, z = (np.array(row["joints3d_mm"]) + row["camera"]["cam_t_mm"]).T
        camera = row["camera"]
        seen = camera["focal_px"] * np.stack([x / z, y / z], 1) + camera["principal_px"]
        np.testing.assert_allclose(seen, row["joints2d_px"], atol=0.15)  # one focal length for HO3D's two
        exact = (np.array(row["joints3d_mm"]) + row["wrist_mm"]) @ np.array(row["camera_matrix"]).T
        np.testing.assert_allclose(exact[:, :2] / exact[:, 2:], row["joints2d_px"], atol=0.1)


def test_the_mesh_is_the_one_that_pose_shape_and_translation_give_in_the_files_own_axes(
    root: Path, converted: tuple[Path, ConvertSummary], mano: Any
) -> None:
    for row in rows_of(converted[0]):
        meta = meta_of(root, row)
        mesh = skinned(mano, meta["handPose"], meta["handBeta"])[0] + meta["handTrans"]
        vertices = np.array(row["vertices_mm"])
        there = 1000 * (mesh - meta["handJoints3D"][0]) * [1, -1, -1]
        # R's wrist and the skeleton's wrist differ slightly.
        np.testing.assert_allclose(vertices, there, atol=1.0)
        check_tips(mano, row)
        pixels = seen(meta, mesh)
        np.testing.assert_allclose(row["box_xyxy"], [*pixels.min(0), *pixels.max(0)], atol=1.5)


def test_pose_and_betas_through_the_layer_give_the_mesh_in_camera_axes(
    root: Path, converted: tuple[Path, ConvertSummary], mano: Any
) -> None:
    layer = HandLayer(mano)
    for row in rows_of(converted[0]):
        rotations = roma.rotvec_to_rotmat(torch.tensor(row["pose"]).view(1, 16, 3))
        vertices, _ = layer(rotations, torch.tensor(row["betas"])[None])
        np.testing.assert_allclose(row["vertices_mm"], vertices[0].numpy(), atol=0.06)
        np.testing.assert_allclose(row["pose"][3:], meta_of(root, row)["handPose"][3:], atol=2e-5)


def test_with_the_open_hand_there_are_joints_and_no_mesh_or_pose(tmp_path: Path, root: Path) -> None:
    write_ho3d(tmp_path / "open", load_hand("open"), 3)
    for number, source in enumerate((root, tmp_path / "open")):
        out = tmp_path / f"out{number}"
        convert(f"ho3d:{source}", str(out))
        for row in rows_of(out):
            assert row["vertices_mm"] is row["pose"] is row["betas"] is None
            meta = meta_of(source, row)
            np.testing.assert_allclose(
                row["joints2d_px"], seen(meta, meta["handJoints3D"])[SIMPLE], atol=0.05
            )
            assert chirality(np.array(row["joints3d_mm"])) > 0


@pytest.mark.parametrize(
    ("version", "folder"),
    [(2, "HO3D_v2_segmentations_rendered"), (3, "."), (3, "HO3D_v3_segmentations_rendered")],
)
def test_masks_show_the_hand_and_not_the_object_before_it(
    version: int, folder: str, mano: Any, mano_path: Path, tmp_path: Path
) -> None:
    """The colour of hands differs between v2 and v3. The first frame of a sequence has no segmentation."""
    data, out = tmp_path / "data", tmp_path / "out"
    frames = [
        frame for frame in write_ho3d(data, mano, version, frames=5) if frame[1] not in ("0000", "0004")
    ]
    meshes = {}
    for sequence, frame in frames:
        meta = pickle.loads(
            (data / "train" / sequence / "meta" / f"{frame}.pkl").read_bytes(), encoding="latin1"
        )
        meshes[sequence, frame] = seen(
            meta, skinned(mano, meta["handPose"], meta["handBeta"])[0] + meta["handTrans"]
        )
    write_segmentations(data / folder, version, meshes)
    convert(f"ho3d:{data}", str(out), f"mano:{mano_path}")
    counts = np.zeros(2, int)
    for row in rows_of(out):
        sequence, frame = row["image_id"].split("/")[1], Path(row["image_id"]).stem
        if (sequence, frame) not in meshes:
            assert frame == "0000" and row["hand_mask"] is None
            continue
        mask = np.asarray(Image.open(io.BytesIO(row["hand_mask"])))
        assert mask.shape == (480, 640) and set(np.unique(mask)) == {0, 255}
        top, bottom = meshes[sequence, frame][:, 1].min(), meshes[sequence, frame][:, 1].max()
        for x, y in row["joints2d_px"]:
            below_px = y - (top + (bottom - top) / 3)
            if abs(below_px) > 12 and abs(y - bottom) > 12:  # pixels of a segmentation have four of the photo
                assert mask[int(y), int(x)] == 255 * (below_px > 0)
                counts[int(below_px > 0)] += 1
    assert counts.min() > 10
    batches = StoredExamples(str(out), mano, 64, SourceConfig(source=str(out)), seed=0).in_order(8)
    for batch, facts in batches:
        for k, fact in enumerate(facts):
            known = fact.image_id.split("/")[1], Path(fact.image_id).stem
            assert bool(batch.has_hand_mask[k]) == (known in meshes)
            if known in meshes:  # L_tex counts pixels of 255
                assert 0.05 < (batch.hand_mask[k] == 255).float().mean() < 0.6


def test_segmentations_without_a_coloured_hand_are_named(mano: Any, tmp_path: Path) -> None:
    frames = write_ho3d(tmp_path, mano, 3)
    write_segmentations(tmp_path, 3, {})
    for sequence, frame in frames:
        put(
            tmp_path / "train" / sequence / "seg" / f"{frame}.png",
            encoded(np.zeros((120, 160, 3), np.uint8), ".png"),
        )
    with pytest.raises(UserError, match=r"seg/000\d.png: shows no hand in red, green or blue"):
        list(ho3d_examples(str(tmp_path), mano, "train", np.random.default_rng(0)))


def test_evaluation_frames_have_their_box_and_root_and_nothing_else(
    root: Path, mano_path: Path, tmp_path: Path
) -> None:
    convert(f"ho3d:{root}", str(tmp_path / "out"), f"mano:{mano_path}", split="evaluation")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 3
    for row in rows:
        meta = meta_of(root, row)
        assert all(row[target] is None for target in TARGETS)
        assert row["box_xyxy"] == meta["handBoundingBox"]
        u, v, w = np.array(row["camera_matrix"]) @ row["wrist_mm"]
        np.testing.assert_allclose([[u / w, v / w]], seen(meta, meta["handJoints3D"][None]), atol=0.01)


def test_evaluation_frames_have_targets_where_the_truth_was_published(
    mano: Any, mano_path: Path, tmp_path: Path
) -> None:
    write_ho3d(tmp_path / "data", mano, 3, truth=True)
    convert(f"ho3d:{tmp_path / 'data'}", str(tmp_path / "out"), f"mano:{mano_path}", split="evaluation")
    published = json.loads((tmp_path / "data" / "evaluation_xyz.json").read_text())
    misses = []
    for row in rows_of(tmp_path / "out"):
        meta = meta_of(tmp_path / "data", row)
        assert row["box_xyxy"] == meta["handBoundingBox"]
        misses.append(dots_missed(row, meta, np.array(published[row["source_index"]])))
        check_tips(mano, row)
    assert np.nanmax(misses) < 0.7


def test_the_truth_of_the_evaluation_submitted_is_the_file_that_was_published(
    mano: Any, mano_path: Path, tmp_path: Path
) -> None:
    """Ours in, HO3D's out: conversion and submission undo each other, tips too."""
    data, out = tmp_path / "data", tmp_path / "out"
    write_ho3d(data, mano, 3, truth=True)
    convert(f"ho3d:{data}", str(out), f"mano:{mano_path}", split="evaluation")
    rows = sorted(rows_of(out), key=lambda row: row["source_index"])
    joints, vertices, wrists = (
        np.array([row[name] for row in rows]) for name in ("joints3d_mm", "vertices_mm", "wrist_mm")
    )
    benchmark = dataclasses.replace(BENCHMARKS["ho3d_v3"], entries=len(rows))
    write_submission(str(tmp_path), benchmark, joints, vertices, wrists)
    xyz, verts = json.loads((tmp_path / "pred.json").read_text())
    for submitted, name in ((xyz, "xyz"), (verts, "verts")):
        published = json.loads((data / f"evaluation_{name}.json").read_text())
        np.testing.assert_allclose(submitted, published, atol=1e-4)  # examples are rounded to 1/32 mm


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, mano: Any) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_ho3d(folder, mano, 2, frames=2)
    return folder


def write_meta(path: Path, **changes: Any) -> None:
    meta = pickle.loads(path.read_bytes(), encoding="latin1")
    path.write_bytes(dump({k: v for k, v in (meta | changes).items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camMat": ...}, "camMat: missing field"),
        ({"camMat": np.eye(4)}, "camMat: expected 3x3 numbers"),
        ({"camMat": None}, "camMat: expected 3x3 numbers"),
        ({"camMat": np.diag([-600.0, 600.0, 1.0])}, "expected a camera matrix"),
        ({"handJoints3D": np.zeros((20, 3))}, "handJoints3D: expected 21x3 numbers"),
        ({"handJoints3D": np.full((21, 3), np.nan)}, "handJoints3D: holds values that are not finite"),
        ({"handJoints3D": np.ones((21, 3))}, "the hand lies behind the camera"),
        ({"handPose": np.zeros(45)}, "handPose: expected 48 numbers"),
        ({"handBeta": ...}, "handBeta: missing field"),
        ({"handBoundingBox": [1, 2, 3]}, "handBoundingBox: expected 4 numbers"),
    ],
)
def test_a_malformed_meta_file_is_named_with_its_field(
    changes: dict[str, Any], message: str, mano: Any, small: Path, tmp_path: Path
) -> None:
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    write_meta(tmp_path / "train" / "MC1" / "meta" / "0000.pkl", **changes)
    with pytest.raises(UserError) as error:
        list(ho3d_examples(str(tmp_path), mano, "train", np.random.default_rng(0)))
    assert message in str(error.value)
    assert "MC1/meta/0000.pkl: " in str(error.value)


def test_files_that_are_missing_strange_or_damaged_are_named(small: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", str(tmp_path / "out")
    shutil.copytree(small, data)
    meta = data / "train" / "MC1" / "meta" / "0000.pkl"
    whole = meta.read_bytes()

    def says(words: str, split: str = "train") -> None:
        with pytest.raises(UserError, match=words):
            convert(f"ho3d:{data}", out, split=split)

    meta.write_bytes(whole[:100])
    says(r"0000.pkl: cut short")
    meta.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    says(r"0000.pkl: refused, because it names the global `os.system`")
    meta.write_bytes(dump([1, 2]))
    says(r"0000.pkl: holds no named fields")
    meta.unlink()
    says(r"0000.pkl: no such file")
    meta.write_bytes(whole)
    (data / "train" / "MC1" / "rgb" / "0000.png").unlink()
    says(r"rgb/0000.png: no such file")
    (data / "train.txt").write_text("MC1/0000\n../../etc/passwd\n")
    says(r"train.txt: line 2: expected SEQUENCE/FRAME")
    (data / "train.txt").write_text("\n")
    says("train.txt: lists no frames")
    (data / "train.txt").unlink()
    says("train.txt: no such file")
    write_meta(data / "evaluation" / "SM1" / "meta" / "0001.pkl", handBoundingBox=None)
    says("0001.pkl: handBoundingBox: missing field", "evaluation")
    shutil.rmtree(data / "evaluation" / "SM1" / "rgb")
    says("SM1/rgb: holds no photos", "evaluation")


def test_numpy_scalars_and_the_names_of_every_numpy_are_read(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "data")
    path = tmp_path / "data" / "evaluation" / "SM1" / "meta" / "0000.pkl"
    meta = pickle.loads(path.read_bytes(), encoding="latin1")
    meta["handBoundingBox"] = [np.int64(v) for v in (10, 20, 300, 400)]
    for number, (protocol, core) in enumerate(
        (p, core) for p in (0, 2, 4) for core in (b"numpy.core", b"numpy._core")
    ):
        data = pickle.dumps(meta, protocol=protocol)
        if protocol < 4:  # names are lines of text; later protocols prefix their length
            data = data.replace(b"numpy._core", core).replace(b"numpy.core", core)
        path.write_bytes(data)
        out = tmp_path / f"out{number}"
        convert(f"ho3d:{tmp_path / 'data'}", str(out), split="evaluation")
        boxes = {row["source_index"]: row["box_xyxy"] for row in rows_of(out)}
        assert boxes[0] == [10, 20, 300, 400]
