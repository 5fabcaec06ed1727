from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.photos.crops import box_around_joints
from tests.support.dataset_fixtures import coco_document, dots_found
from trainer.convert.convert import ConvertSummary, convert

COUNT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coco")


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    return coco_document(load_hand("open"), folder / "images", COUNT)


def run(
    document: Any, folder: Path, tmp_path: Path, **options: Any
) -> tuple[list[dict[str, Any]], ConvertSummary]:
    file = folder / f"{tmp_path.name}.json"
    file.write_text(json.dumps(document))
    summary = convert(f"coco:{file}", str(tmp_path / "out"), **options)
    files = sorted((tmp_path / "out" / "data").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(f) for f in files]).to_pylist(), summary


def test_joints_are_found_in_the_photo_and_unannotated_ones_are_nan(
    document: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    rows, summary = run(document, folder, tmp_path)
    assert (summary.examples, summary.left_out) == (COUNT, {})
    misses = []
    for row in rows:
        joints2d = np.array(row["joints2d_px"])
        k = row["source_index"]
        assert np.flatnonzero(np.isnan(joints2d).any(1)).tolist() == [k]
        assert row["is_right"] == (k % 2 == 0)
        assert row["image"] == (folder / "images" / f"{k}.png").read_bytes()
        np.testing.assert_allclose(row["box_xyxy"], box_around_joints(joints2d), atol=0.05)
        given = np.array(document["annotations"][k]["keypoints"]).reshape(21, 3)[:, :2]
        np.testing.assert_allclose(np.delete(joints2d, k, 0), np.delete(given, k, 0), atol=0.04)
        misses.append(dots_found(row["image"], joints2d))
        for column in ("joints3d_mm", "vertices_mm", "pose", "betas", "camera"):
            assert row[column] is None
    assert np.isfinite(misses).any(0).sum() >= 15
    assert np.nanmax(misses) < 0.5


def test_a_given_box_side_and_folder_of_images_are_used(
    document: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    changed = copy.deepcopy(document)
    del changed["categories"]
    for k, annotation in enumerate(changed["annotations"]):
        annotation |= {"bbox": [10, 20, 30, 40], "is_right": k == 0}
    (folder / "images").rename(folder / "elsewhere")
    try:
        rows, _ = run(changed, folder, tmp_path, images=str(folder / "elsewhere"))
        with pytest.raises(UserError, match="gives no examples .4: photo missing.; give the photos' folder"):
            run(changed, folder, tmp_path / "x")
    finally:
        (folder / "elsewhere").rename(folder / "images")
    assert {row["source_index"]: row["is_right"] for row in rows} == {0: True, 1: False, 2: False, 3: False}
    assert all(row["box_xyxy"] == [10, 20, 40, 60] for row in rows)


def test_whole_body_annotations_give_each_valid_hand(
    document: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    first, second = (a["keypoints"] for a in document["annotations"][:2])
    none = [0] * 63
    person = {"id": 1, "image_id": 10, "category_id": 7, "keypoints": [0] * 51, "bbox": [0, 0, 320, 240]}
    annotations = [
        person | {"righthand_kpts": first, "righthand_valid": True, "righthand_box": [5.0, 6.0, 70.0, 80.0],
                  "lefthand_kpts": second, "lefthand_valid": True, "lefthand_box": [0.0, 0.0, 0.0, 0.0]},
        person | {"righthand_kpts": none, "righthand_valid": False, "lefthand_kpts": second, "lefthand_valid": True},
        person | {"righthand_kpts": none, "righthand_valid": False, "lefthand_kpts": none, "lefthand_valid": False},
    ]  # fmt: skip
    rows, summary = run(document | {"annotations": annotations, "categories": []}, folder, tmp_path)
    assert summary.examples == 3
    assert sorted(row["hand_index"] for row in rows) == [0, 1, 2]
    boxes = {row["is_right"]: row["box_xyxy"] for row in rows if row["source_index"] == 0}
    assert boxes[True] == [5, 6, 75, 86]
    points = np.array(second).reshape(21, 3)
    expected = box_around_joints(np.where(points[:, 2:] > 0, points[:, :2], np.nan))
    np.testing.assert_allclose(boxes[False], expected, atol=0.05)


def test_unusable_annotations_are_left_out_and_counted(
    document: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    changed = copy.deepcopy(document)
    a = changed["annotations"]
    a[0]["category_id"] = 9
    a[1]["keypoints"] = [0] * 63
    changed["images"][2]["width"] = 321
    changed["images"].append({"id": "none", "file_name": "none.png"})
    a.append(a[3] | {"image_id": "none"})
    one = [7.0, 7.0, 2.0] + [0] * 60
    a.append(a[3] | {"keypoints": one})
    (folder / "images" / "cut.png").write_bytes((folder / "images" / "0.png").read_bytes()[:500])
    changed["images"].append({"id": "cut", "file_name": "cut.png", "width": 0})
    a.append(a[3] | {"image_id": "cut"})
    rows, summary = run(changed, folder, tmp_path)
    assert [row["source_index"] for row in rows] == [3]
    assert summary.left_out == {
        "unknown side: no is_right, and no left or right in the category's name": 1,
        "no annotated joints": 1,
        "photo size differs from the annotations": 1,
        "photo missing": 1,
        "a box without area": 1,
        "photo truncated": 1,
    }
    assert json.loads((tmp_path / "out" / "_convert.json").read_text())["left_out"] == summary.left_out


def test_photos_in_other_formats_become_png(document: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    changed = copy.deepcopy(document)
    pixels = Image.open(folder / "images" / "0.png").convert("RGB")
    pixels.save(folder / "images" / "0.webp", lossless=True)
    changed["images"][0]["file_name"] = "0.webp"
    rows, _ = run(changed, folder, tmp_path)
    (row,) = (row for row in rows if row["source_index"] == 0)
    assert row["image"].startswith(b"\x89PNG")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), np.asarray(pixels))


def edited(document: dict[str, Any], edit: Any) -> Any:
    changed = copy.deepcopy(document)
    return edit(changed) or changed


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: [1], "expected an object with images and annotations"),
        (lambda d: d.pop("annotations") and None, "annotations: expected a list"),
        (lambda d: d.update(images={}), "images: expected a list"),
        (lambda d: d["images"][1].pop("file_name") and None, "image 1: file_name: expected text"),
        (lambda d: d["images"].append(5), "image 4: id: expected a number or text"),
        (lambda d: d["annotations"][2].update(image_id=99), "annotation 2: image_id: no image has the id 99"),
        (
            lambda d: d["annotations"][2].pop("keypoints") and None,
            "annotation 2: keypoints: expected 63 numbers",
        ),
        (
            lambda d: d["annotations"][0].update(keypoints=[0] * 51),
            "annotation 0: keypoints: expected 63 numbers",
        ),
        (lambda d: d["annotations"][0].update(bbox=[1, 2]), "annotation 0: bbox: expected 4 numbers"),
        (
            lambda d: d["annotations"][3].update(is_right="yes"),
            "annotation 3: is_right: expected true or false",
        ),
        (
            lambda d: d["annotations"][3].update(lefthand_kpts=[1], lefthand_valid=True),
            "annotation 3: lefthand_kpts: expected 63 numbers",
        ),
    ],
)
def test_a_malformed_file_is_named_with_its_field(
    edit: Any, message: str, document: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        run(edited(document, edit), folder, tmp_path)
    assert message in str(error.value)
    assert f"{tmp_path.name}.json" in str(error.value)


def test_invalid_files_and_arguments_are_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"a\.json: no such file"):
        convert(f"coco:{tmp_path / 'a.json'}", out)
    (tmp_path / "a.json").write_text(json.dumps(document)[:100])
    with pytest.raises(UserError, match=r"a\.json: not JSON, or cut short"):
        convert(f"coco:{tmp_path / 'a.json'}", out)
    with pytest.raises(
        UserError, match="'frei:x' is not a source of examples: give one of freihand:PATH, ho3d:PATH"
    ):
        convert("frei:x", out)
    with pytest.raises(UserError, match="split is 'test', may be train, evaluation"):
        convert("coco:x", out, split="test")
    with pytest.raises(UserError, match="images only applies to coco and labels"):
        convert("ho3d:x", out, images="y")
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty: delete it"):
        convert(f"coco:{tmp_path / 'a.json'}", out)
