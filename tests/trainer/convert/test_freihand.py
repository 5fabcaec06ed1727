from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import roma
import torch
from PIL import Image

from annotator.coordinates import CropFrame
from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.hand.anatomy import chirality
from annotator.hand.layer import HandLayer
from annotator.photos.crops import box_around_joints
from annotator.sources.fields import read_arrays
from tests.support.dataset_fixtures import dots_found, write_freihand
from tests.support.mano_file import write_mano_file
from trainer.convert.convert import convert
from trainer.data.read import Rows, frame_of

POSES, EVALUATION = 4, 3


@pytest.fixture(scope="module")
def mano_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mano") / "MANO_RIGHT.pkl"
    write_mano_file(path)
    return path


@pytest.fixture(scope="module")
def mano(mano_path: Path) -> Any:
    return load_hand(f"mano:{mano_path}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, mano: Any) -> Path:
    folder = tmp_path_factory.mktemp("FreiHAND_pub_v2")
    write_freihand(folder, mano, POSES, evaluation=EVALUATION)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, root: Path, mano_path: Path) -> Path:
    folder = tmp_path_factory.mktemp("out") / "train"
    assert convert(f"freihand:{root}", str(folder), f"mano:{mano_path}").examples == 4 * POSES
    return folder


def rows_of(out: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(f) for f in sorted((out / "data").glob("*.parquet"))]).to_pylist()


def raw(root: Path, name: str) -> dict[str, Any]:
    return {
        field: np.array(json.loads((root / f"{name}_{field}.json").read_text()))
        for field in ("K", "xyz", "verts", "mano", "scale")
    }


def test_every_photo_is_an_example_of_its_annotation_and_keeps_its_bytes(root: Path, out: Path) -> None:
    rows = rows_of(out)
    assert sorted(row["source_index"] for row in rows) == list(range(4 * POSES))
    for row in rows:
        assert row["image"] == (root / row["image_id"]).read_bytes()
        assert row["image_id"] == f"training/rgb/{row['source_index']:08d}.jpg"
        assert (row["width"], row["height"], row["is_right"], row["status"]) == (224, 224, True, "ok")


def test_the_order_is_shuffled_and_the_same_every_time(root: Path, out: Path, tmp_path: Path) -> None:
    order = [row["source_index"] for row in rows_of(out)]
    assert order != sorted(order)
    convert(f"freihand:{root}", str(tmp_path / "again"))
    assert [row["source_index"] for row in rows_of(tmp_path / "again")] == order


def test_joints_in_the_file_projected_through_its_camera_are_the_pixels_of_the_example(
    root: Path, out: Path
) -> None:
    there = raw(root, "training")
    misses = []
    for row in rows_of(out):
        k = row["source_index"] % POSES
        u, v, w = there["K"][k] @ there["xyz"][k].T
        joints2d = np.array(row["joints2d_px"])
        np.testing.assert_allclose(joints2d, np.stack([u / w, v / w], 1), atol=0.05)
        misses.append(dots_found(row["image"], joints2d))
        relative = 1000 * (there["xyz"][k] - there["xyz"][k][0])
        np.testing.assert_allclose(row["joints3d_mm"], relative, atol=0.05)
    assert np.isfinite(misses).any(0).sum() >= 18
    assert np.nanmax(misses) < 0.7


def test_wrist_and_camera_project_the_joints_back(out: Path) -> None:
    for row in rows_of(out):
        joints = np.array(row["joints3d_mm"])
        seen = (joints + row["wrist_mm"]) @ np.array(row["camera_matrix"]).T
        np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], row["joints2d_px"], atol=0.1)
        x, y, z = (joints + row["camera"]["cam_t_mm"]).T
        again = row["camera"]["focal_px"] * np.stack([x / z, y / z], 1) + row["camera"]["principal_px"]
        np.testing.assert_allclose(again, row["joints2d_px"], atol=0.2)
        assert row["camera"]["focal_source"] == "given"
        np.testing.assert_allclose(row["reference_bone_mm"], np.linalg.norm(joints[10] - joints[9]), atol=0.1)


def test_hands_are_right_hands(out: Path) -> None:
    joints = np.array([row["joints3d_mm"] for row in rows_of(out)])
    assert (chirality(joints) > 0).all()


def test_the_mesh_is_the_files_and_its_regressed_joints_are_the_joints(
    root: Path, out: Path, mano: Any
) -> None:
    there = raw(root, "training")
    for row in rows_of(out):
        k = row["source_index"] % POSES
        vertices = np.array(row["vertices_mm"])
        np.testing.assert_allclose(vertices, 1000 * (there["verts"][k] - there["xyz"][k][0]), atol=0.05)
        off = np.linalg.norm(mano.joint_regressor @ vertices - row["joints3d_mm"], axis=1)
        assert off.max() < 3.0
        np.testing.assert_allclose(vertices[[744, 320, 443, 555, 672]], np.array(row["joints3d_mm"])[4::4])
        x0, y0, x1, y1 = row["box_xyxy"]
        u, v, w = there["K"][k] @ there["verts"][k].T
        np.testing.assert_allclose(
            [x0, y0, x1, y1], [(u / w).min(), (v / w).min(), (u / w).max(), (v / w).max()], atol=0.05
        )


def test_pose_and_betas_through_the_layer_give_the_mesh(out: Path, mano: Any) -> None:
    layer = HandLayer(mano)
    for row in rows_of(out):
        rotations = roma.rotvec_to_rotmat(torch.tensor(row["pose"]).view(1, 16, 3))
        vertices, _ = layer(rotations, torch.tensor(row["betas"])[None])
        difference = np.array(row["vertices_mm"]) - vertices[0].numpy()
        # The layer's origin is R's wrist, the file's origin the skeleton's wrist.
        assert np.linalg.norm(difference.mean(0)) < 1.0
        np.testing.assert_allclose(difference, np.tile(difference.mean(0), (778, 1)), atol=0.1)


def test_masks_belong_to_the_pose_and_are_black_and_white(root: Path, out: Path) -> None:
    for row in rows_of(out):
        mask = np.asarray(Image.open(io.BytesIO(row["hand_mask"])))
        stored = np.asarray(Image.open(root / "training" / "mask" / f"{row['source_index'] % POSES:08d}.jpg"))
        assert set(np.unique(mask)) == {0, 255}
        assert np.abs(mask.astype(int) - stored).mean() < 3


def test_with_the_open_hand_there_are_joints_and_no_mesh_or_pose(
    tmp_path: Path, root: Path, mano_path: Path
) -> None:
    write_freihand(tmp_path / "open", load_hand("open"), poses=2, versions=1)
    for number, source in enumerate((root, tmp_path / "open")):
        out = tmp_path / f"out{number}"
        convert(f"freihand:{source}", str(out), "open")
        there = raw(source, "training")
        for row in rows_of(out):
            assert row["vertices_mm"] is row["pose"] is row["betas"] is None
            xyz = there["xyz"][row["source_index"] % len(there["K"])]
            np.testing.assert_allclose(row["joints3d_mm"], 1000 * (xyz - xyz[0]), atol=0.05)
            assert chirality(np.array(row["joints3d_mm"])) > 0


def test_evaluation_photos_have_one_box_and_targets_where_those_are_published(
    root: Path, tmp_path: Path, mano_path: Path
) -> None:
    convert(f"freihand:{root}", str(tmp_path / "with"), f"mano:{mano_path}", split="evaluation")
    there = raw(root, "evaluation")
    rows = rows_of(tmp_path / "with")
    assert sorted(row["source_index"] for row in rows) == list(range(EVALUATION))
    for row in rows:
        k = row["source_index"]
        np.testing.assert_allclose(row["box_xyxy"], [47.04, 47.04, 176.96, 176.96], atol=1e-3)  # 0.58 of 224
        u, v, w = there["K"][k] @ there["xyz"][k].T
        np.testing.assert_allclose(row["joints2d_px"], np.stack([u / w, v / w], 1), atol=0.05)
        assert row["vertices_mm"] is not None
    hidden = tmp_path / "hidden"
    shutil.copytree(root, hidden)
    for field in ("xyz", "verts", "mano"):
        (hidden / f"evaluation_{field}.json").unlink()
    convert(f"freihand:{hidden}", str(tmp_path / "without"), f"mano:{mano_path}", split="evaluation")
    for row in rows_of(tmp_path / "without"):
        k = row["source_index"]
        for target in ("joints2d_px", "joints3d_mm", "vertices_mm", "pose", "betas"):
            assert row[target] is None
        np.testing.assert_allclose(row["box_xyxy"], [47.04, 47.04, 176.96, 176.96], atol=1e-3)
        np.testing.assert_allclose(row["camera_matrix"], there["K"][k])
        np.testing.assert_allclose(row["reference_bone_mm"], 1000 * there["scale"][k], rtol=1e-6)
        assert row["camera"]["focal_px"] == pytest.approx((480 + 479) / 2 + 5 * k)


def test_evaluation_crops_show_a_usual_hand_as_large_as_training_crops_do(
    root: Path, out: Path, tmp_path: Path
) -> None:
    """Read as `evaluate` and `train` read them: the crop is 1.3 times a hand's box, and no truth moves it."""
    convert(f"freihand:{root}", str(tmp_path / "evaluation"), split="evaluation")

    def frames(folder: Path) -> list[tuple[CropFrame, np.ndarray]]:
        table = pa.concat_tables([pq.read_table(f) for f in sorted((folder / "data").glob("*.parquet"))])
        rows = Rows(table)
        boxes = [rows.array("box_xyxy", row).reshape(4) for row in range(rows.count)]
        return [(frame_of(rows, row), box) for row, box in enumerate(boxes)]

    for frame, box in frames(out):
        longer_side_px = max(box[2] - box[0], box[3] - box[1])
        assert longer_side_px / (2 * frame.half_side_px) == pytest.approx(1 / 1.3)
    for frame, _ in frames(tmp_path / "evaluation"):
        np.testing.assert_allclose(frame.centre_px, [112, 112], atol=1e-4)
        assert 0.58 * 224 / (2 * frame.half_side_px) == pytest.approx(1 / 1.3)
        assert 2 * frame.half_side_px == pytest.approx(168.9, abs=0.1)


def test_duckdb_reads_the_examples(out: Path) -> None:
    query = f"select count(*), min(joints3d_mm[10][3]), any_value(octet_length(image)) from '{out}/data/*.parquet'"
    count, depth, size = duckdb.sql(query).fetchall()[0]
    assert count == 4 * POSES
    assert np.isfinite(depth)
    assert size > 1000


def test_without_a_mask_or_with_one_version_all_else_is_read(tmp_path: Path, mano: Any) -> None:
    write_freihand(tmp_path / "data", mano, poses=3, versions=1)
    (tmp_path / "data" / "training" / "mask" / "00000001.jpg").unlink()
    assert convert(f"freihand:{tmp_path / 'data'}", str(tmp_path / "out")).examples == 3
    masks = {row["source_index"]: row["hand_mask"] for row in rows_of(tmp_path / "out")}
    assert [masks[k] is None for k in range(3)] == [False, True, False]
    box = rows_of(tmp_path / "out")[0]
    assert box["box_xyxy"] != box_around_joints(np.array(box["joints2d_px"])).tolist()


def change(path: Path, edit: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(edit(values)))


def replaced(values: list[Any], index: int, value: Any) -> list[Any]:
    return [*values[:index], value, *values[index + 1 :]]


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("training_K.json", lambda v: replaced(v, 2, [[1, 2], [3, 4]]), "entry 2: expected 3x3 numbers"),
        ("training_K.json", lambda v: replaced(v, 1, [[1, 2, 3], [4, 5], [6]]), "entry 1: expected 3x3 numbers"),
        ("training_K.json", lambda v: replaced(v, 0, [["1", "2", "3"]] * 3), "entry 0: expected 3x3 numbers"),
        ("training_K.json", lambda v: replaced(v, 3, np.eye(3).tolist()[::-1]), "entry 3: expected a camera matrix"),
        ("training_xyz.json", lambda v: v[:-1], "holds 3 entries, expected 4 as in training_K.json"),
        ("training_xyz.json", lambda v: replaced(v, 3, None), "entry 3: expected 21x3 numbers"),
        ("training_xyz.json", lambda v: replaced(v, 0, [[0.0, 0.0, -1.0]] * 21), "entry 0: the hand lies behind"),
        ("training_verts.json", lambda v: replaced(v, 1, v[1][:777]), "entry 1: expected 778x3 numbers"),
        ("training_mano.json", lambda v: replaced(v, 1, v[1][0]), "entry 1: expected 1x61 numbers"),
        ("training_scale.json", lambda v: replaced(v, 1, float("nan")), "entry 1: holds values that are not finite"),
        ("training_scale.json", lambda v: {"scale": v}, "expected a JSON list"),
        ("training_scale.json", lambda v: [], "holds no entries"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_named_with_its_entry(
    file: str, edit: Any, message: str, root: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(root, broken)
    change(broken / file, edit)
    with pytest.raises(UserError) as error:
        convert(f"freihand:{broken}", str(tmp_path / "out"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    # Wrong projections are detected when camera and joints are combined.
    assert (file if "behind" not in message else "training_") in str(error.value)


@pytest.mark.parametrize("file", ["training_K.json", "training_verts.json", "training_mano.json"])
def test_a_file_that_is_missing_or_cut_short_is_named(file: str, root: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(root, broken)
    text = (broken / file).read_text()
    (broken / file).write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=rf"{file}: entry \d+: not JSON, or cut short"):
        convert(f"freihand:{broken}", str(tmp_path / "out"))
    (broken / file).unlink()
    with pytest.raises(UserError, match=rf"{file}: no such file"):
        convert(f"freihand:{broken}", str(tmp_path / "out"))


def test_too_few_photos_and_damaged_ones_are_named(root: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(root, broken)
    photo = broken / "training" / "rgb" / "00000005.jpg"
    data = photo.read_bytes()
    photo.write_bytes(data[:1000])
    with pytest.raises(UserError, match=r"00000005.jpg: the JPEG"):
        convert(f"freihand:{broken}", str(tmp_path / "out"))
    photo.unlink()
    with pytest.raises(UserError, match=r"training/rgb: holds 15 photos .* expected 4 or 16"):
        convert(f"freihand:{broken}", str(tmp_path / "out"))
    put = broken / "training" / "mask" / "00000000.jpg"
    photo.write_bytes(data)
    Image.new("L", (100, 224)).save(put)
    with pytest.raises(UserError, match=r"mask/00000000.jpg: the mask has 100 x 224 pixels"):
        convert(f"freihand:{broken}", str(tmp_path / "out"))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_a_json_list_reads_the_same_in_any_chunks(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).normal(size=(5, 3, 3)) * [1, 100, 1e-9]
    monkeypatch.setattr("annotator.sources.fields._CHUNK", chunk)
    for number, options in enumerate(({}, {"indent": 2}, {"separators": (",", ":")})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(values.tolist(), **options) + "\n")
        np.testing.assert_allclose(read_arrays(str(path), (3, 3)), values, rtol=1e-6)
    path.write_text("[12345, 67890]")
    np.testing.assert_array_equal(read_arrays(str(path), ()), [12345, 67890])
    path.write_text("[12345, 67890")
    with pytest.raises(UserError, match="entry 1: not JSON, or cut short"):
        read_arrays(str(path), ())
