"""The detector on real photos, and its job: every photo accounted for, resumable after any kill."""

import csv
import gc
import json
import os
import shutil
import sys
import threading
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotator.errors import UserError
from annotator.hand.anatomy import chirality
from annotator.labels.schema import label_schema
from tests.conftest import SHARED
from tests.robustness.hostile_photos import encoded, noise
from tests.support.killed_run import changed_ns, kill_after_first_shard

pytest.importorskip("mediapipe", reason="MediaPipe (extra 'detect') is not installed")

from annotator.commands.annotate import annotate
from annotator.commands.detect import detect, detection_schema
from annotator.detection.detector import HandDetector, agreement, read_model
from annotator.job.options import ComputeOptions

pytestmark = pytest.mark.slow

SMALL_SHARDS = ComputeOptions(shard_size=4)
MODEL = SHARED / "models" / "hand_landmarker.task"


@pytest.fixture(scope="module")
def model() -> str:
    if not MODEL.is_file():
        pytest.skip("the hand detector's model is not beside this checkout")
    return str(MODEL)


@pytest.fixture(scope="module")
def detector(model):
    detector = HandDetector(model)
    yield detector
    detector.close()


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes xyxy."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(sides.clip(0)))
    return shared / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def test_hands_of_scenes_are_found_where_the_boxes_are(detector, hand_scenes):
    boxes: dict[str, list[np.ndarray]] = {}
    with (hand_scenes / "boxes.csv").open() as file:
        for row in csv.DictReader(file):
            corners = [float(row[name]) for name in ("x1_px", "y1_px", "x2_px", "y2_px")]
            boxes.setdefault(row["image"], []).append(np.array(corners))
    there = found_count = hits = 0
    for path in sorted((hand_scenes / "images").glob("*.jpg"))[::25]:
        left = list(boxes[path.name])
        found = detector.detect(pixels_of(path))
        there, found_count = there + len(left), found_count + len(found)
        for hand in found:
            match = [overlap(hand.box_xyxy, box) for box in left]
            if match and max(match) >= 0.5:
                left.pop(int(np.argmax(match)))
                hits += 1
    assert there > 50
    assert hits / there >= 0.93 and hits / found_count >= 0.97


def test_annotate_with_a_detector_labels_every_hand_of_a_scene(
    model, hand_scenes, lively, lively_file, local_ray, tmp_path
):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((hand_scenes / "images").glob("*.jpg"))[3::250]:
        shutil.copy(path, photos)
    (photos / "wall.jpg").write_bytes(encoded(np.full((300, 400, 3), 180, np.uint8), "JPEG"))
    detect(str(photos), str(tmp_path / "found"), model)
    record = annotate(
        str(photos),
        str(tmp_path / "labels"),
        checkpoint=lively_file,
        detector=model,
        compute=ComputeOptions(threads=1),
    )
    found, labels = (
        {
            (row["image_id"], row["hand_index"]): row
            for path in (tmp_path / folder / "data").glob("*.parquet")
            for row in pq.read_table(path).to_pylist()
        }
        for folder in ("found", "labels")
    )
    assert found.keys() == labels.keys() and len(labels) > len(list(photos.iterdir()))  # some show two hands
    assert record.outcomes == {"ok": len(list(photos.iterdir())) - 1, "no_hand: no_hand_found": 1}
    wall = labels["wall.jpg", -1]
    assert wall["status"] == "no_hand" and wall["box_xyxy"] is None and wall["box_source"] is None
    for key, label in labels.items():
        if label["status"] != "ok":
            continue
        for column in ("box_xyxy", "is_right", "side_score", "box_source", "width", "height"):
            assert label[column] == found[key][column], column
        # The photo's own camera: 3D joints before it fall on the 2D joints, near enough to weak perspective.
        camera = label["camera"]
        points = np.array(label["joints3d_mm"]) + camera["cam_t_mm"]
        seen_px = camera["focal_px"] * points[:, :2] / points[:, 2:] + [
            label["width"] / 2,
            label["height"] / 2,
        ]
        x0, _, x1, _ = label["crop_xyxy"]
        off = np.linalg.norm(seen_px - np.array(label["joints2d_px"]), axis=1).mean() / (x1 - x0)
        assert off < 0.08 and camera["cam_t_mm"][2] > 0
    # The same through the Python API, with the box given.
    key = next(key for key, label in labels.items() if label["status"] == "ok" and label["is_right"])
    with_box = lively.predict([photos / key[0]], side="right", boxes_xyxy=[labels[key]["box_xyxy"]])[0]
    np.testing.assert_allclose(with_box["joints3d_mm"], labels[key]["joints3d_mm"], atol=0.5)
    with pytest.raises(UserError, match="labelled with detector"):
        annotate(str(photos), str(tmp_path / "labels"), checkpoint=lively_file)


def test_photos_filled_by_a_right_hand_give_a_right_hand_in_2d_and_3d(detector, sign_digits):
    photos = [pixels_of(path) for path in sorted(sign_digits.rglob("*.JPG"))[7::70]]
    found = [detector.detect(pixels) for pixels in photos]
    assert all(len(hands) <= 1 for hands in found)
    side_px = [len(pixels) for pixels, hands in zip(photos, found, strict=True) if hands]
    hands = [hand for hands in found for hand in hands]
    assert len(hands) >= 0.97 * len(found)
    assert np.mean([hand.is_right for hand in hands]) >= 0.95
    # Only with x right, y down and z forward is the sign that of a right hand.
    assert np.mean([chirality(hand.joints3d_mm) > 0 for hand in hands]) >= 0.95
    # The same holds of image landmarks with their depth, which is in pixels as x and y are.
    landmarks = [np.column_stack([hand.joints2d_px, hand.landmark_depth_px]) for hand in hands]
    assert np.mean([chirality(points) > 0 for points in landmarks]) >= 0.95
    lengths = np.log(
        [
            np.linalg.norm(points[9] - points[0]) / np.linalg.norm(points[17] - points[5])
            for points in landmarks
        ]
    )
    assert lengths.std() < 0.25  # foreshortened alone it would vary more
    for hand, side in zip(hands, side_px, strict=True):
        assert not hand.joints3d_mm[0].any() and 60 < np.linalg.norm(hand.joints3d_mm[9]) < 140
        assert 0.5 <= hand.side_score <= 1 and 0 < hand.detection_score <= 1
        assert hand.joints2d_px.min() > -0.3 * side and hand.joints2d_px.max() < 1.3 * side
    # Signers hold their hands up: the tips of the middle fingers lie above the wrists.
    assert np.mean([hand.joints2d_px[12, 1] < hand.joints2d_px[0, 1] for hand in hands]) > 0.95


def test_a_mirrored_photo_shows_the_other_hand_at_the_mirrored_position(detector, hand_scenes):
    pixels = pixels_of(sorted((hand_scenes / "images").glob("*.jpg"))[100])
    (hand,), (mirrored,) = detector.detect(pixels), detector.detect(pixels[:, ::-1])
    assert hand.is_right != mirrored.is_right
    size = np.ptp(hand.joints2d_px, 0).max()
    np.testing.assert_allclose(mirrored.joints2d_px * [-1, 1] + [640, 0], hand.joints2d_px, atol=0.06 * size)


def test_joints_are_pixels_of_the_photo_whatever_was_looked_at(detector, hand_scenes):
    """The photo itself, a smaller version, a much larger one, and its hand alone, which needs the border."""
    pixels = pixels_of(sorted((hand_scenes / "images").glob("*.jpg"))[100])
    (hand,) = detector.detect(pixels)
    size = np.ptp(hand.joints2d_px, 0).max()
    x1, y1, x2, y2 = hand.box_xyxy.astype(int)
    for seen, where in (
        (np.asarray(Image.fromarray(pixels).resize((480, 360))), {"width": 640, "height": 480}),
        (np.asarray(Image.fromarray(pixels).resize((2560, 1920))), {"width": 640, "height": 480}),
        (pixels[y1:y2, x1:x2], {}),
    ):
        (again,) = detector.detect(seen, **where)
        joints = again.joints2d_px if where else again.joints2d_px + [x1, y1]
        assert np.linalg.norm(joints - hand.joints2d_px, axis=1).mean() < 0.05 * size


def test_the_score_is_1_for_joints_that_agree_and_half_at_a_twentieth_of_the_hand():
    rng = np.random.default_rng(0)
    joints3d = rng.normal(size=(21, 3)) * 40
    joints2d = 2.5 * joints3d[:, :2] + [300, 200]
    assert agreement(joints2d, joints3d) == pytest.approx(1)
    # A change orthogonal to scale and shift does not change the best fit.
    fitted = np.stack([joints3d[:, :2].ravel(), np.tile([1.0, 0], 21), np.tile([0, 1.0], 21)], 1)
    apart = rng.normal(size=42)
    apart -= fitted @ np.linalg.lstsq(fitted, apart, rcond=None)[0]
    diagonal = np.linalg.norm(np.ptp(joints2d, axis=0))
    noisy = joints2d + (apart * 0.05 * diagonal / np.sqrt((apart**2).sum() / 21)).reshape(21, 2)
    expected = 1 / (1 + (diagonal / np.linalg.norm(np.ptp(noisy, axis=0))) ** 2)
    assert agreement(noisy, joints3d) == pytest.approx(expected)


def test_a_photo_without_a_hand_and_photos_of_a_few_pixels_give_none(detector):
    for shape in ((480, 640), (100, 100), (1, 1), (1, 700), (3, 2)):
        assert detector.detect(np.full((*shape, 3), 120, np.uint8)) == []


def test_a_detector_that_the_garbage_collector_finds_hangs_nobody(model):
    detector = HandDetector(model)
    detector.itself = detector
    gone = weakref.ref(detector)
    del detector
    collector = threading.Thread(target=gc.collect, daemon=True)
    collector.start()
    collector.join(timeout=10)
    assert not collector.is_alive() and gone() is None


@pytest.fixture(scope="module")
def mixed(sign_digits, hand_scenes, tmp_path_factory) -> Path:
    """17 real photos, one with no hand, one damaged, one that is none, in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "scenes").mkdir()
    for photo in sorted(sign_digits.rglob("*.JPG"))[::180]:
        shutil.copy(photo, folder / f"{photo.parent.name} {photo.name}")
    for photo in sorted((hand_scenes / "images").glob("*.jpg"))[3::250]:
        shutil.copy(photo, folder / "scenes")
    (folder / "noise.png").write_bytes(encoded(noise(), "PNG"))
    (folder / "cut.jpg").write_bytes(next(folder.glob("*.JPG")).read_bytes()[:900])
    (folder / "text.jpg").write_text("no photo")
    (folder / "notes.txt").write_text("not even by name")
    return folder


@pytest.fixture(scope="module")
def detected(mixed, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "labels"
    reported = []
    record = detect(str(mixed), str(out), model, compute=SMALL_SHARDS, on_progress=reported.append)
    return out, record, reported


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "data").iterdir()}


def test_every_photo_ends_in_rows_of_the_label_schema(detected, mixed, detector):
    out, record, reported = detected
    table = pq.read_table(out / "data")
    known = label_schema(7)
    assert all(field.equals(known.field(field.name)) for field in table.schema)
    assert not any(name.startswith("vertices") for name in table.column_names)
    rows = table.to_pylist()
    first = {row["image_id"]: row for row in rows if row["hand_index"] <= 0}
    assert sorted(first) == sorted(
        str(p.relative_to(mixed)) for p in mixed.rglob("*.*") if p.suffix != ".txt"
    )
    assert (first["noise.png"]["status"], first["noise.png"]["reason"]) == ("no_hand", "no_hand_found")
    assert (first["cut.jpg"]["status"], first["cut.jpg"]["reason"]) == ("unreadable", "truncated")
    assert first["text.jpg"]["reason"] == "not_a_photo"
    assert record.outcomes["ok"] >= 16 and record.photos == len(first) == 20
    assert record.skipped_names == ["notes.txt"]
    assert reported[0].photos == 0 and reported[-1].photos == reported[-1].total == 20
    assert max(row["hand_index"] for row in rows) <= 1
    for row in rows:
        assert (row["status"] == "ok") == (row["joints2d_px"] is not None) == (row["hand_index"] >= 0)
        assert row["joints3d_mm"] is None
    (name,) = [name for name in first if name.startswith("5 ")][:1]
    (hand,) = detector.detect(pixels_of(mixed / name))
    np.testing.assert_allclose(first[name]["joints2d_px"], hand.joints2d_px, atol=1 / 16)
    np.testing.assert_allclose(first[name]["landmark_depth_px"], hand.landmark_depth_px, atol=1 / 16)
    np.testing.assert_allclose(first[name]["box_xyxy"], hand.box_xyxy, rtol=1e-5)
    assert (first[name]["is_right"], first[name]["box_source"]) == (hand.is_right, "detector")
    facts = json.loads(table.schema.metadata[b"amvur"])
    assert facts["hand"] is None and facts["detector"] == record.settings.detector


def test_running_again_changes_no_file(detected, mixed, model):
    out, record, _ = detected
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in out.rglob("*")}
    assert detect(str(mixed), str(out), model, compute=SMALL_SHARDS) == record
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in out.rglob("*")} == before


def test_a_killed_run_loses_nothing_repeats_nothing_and_leaves_no_process(detected, mixed, model, tmp_path):
    undisturbed, record, _ = detected
    out = tmp_path / "labels"
    compute = "compute=annotator.ComputeOptions(workers=1, shard_size=4)"
    call = f"annotator.detect({str(mixed)!r}, {str(out)!r}, {model!r}, {compute})"
    committed = kill_after_first_shard(call, out)
    assert 1 <= len(committed) < 5
    again = detect(str(mixed), str(out), model, compute=SMALL_SHARDS)
    assert again.outcomes == record.outcomes and contents(out) == contents(undisturbed)
    assert committed.items() <= changed_ns(out).items()
    assert not (out / "_tmp").exists()


def test_world_joints_are_saved_when_asked_for_and_nothing_is_printed(
    detected, mixed, model, tmp_path, capfd
):
    out, _, _ = detected
    with pytest.raises(UserError, match="was labelled with world_joints False, this run has True"):
        detect(str(mixed), str(out), model, world_joints=True)
    few, other = tmp_path / "few", tmp_path / "labels"
    few.mkdir()
    shutil.copy(next(mixed.glob("5 *.JPG")), few)
    record = detect(str(few), str(other), model, world_joints=True)
    assert capfd.readouterr() == ("", "")  # not by the new process either
    (row,) = pq.read_table(other / "data").to_pylist()
    joints = np.array(row["joints3d_mm"])
    assert joints.shape == (21, 3) and not joints[0].any() and chirality(joints) > 0
    assert json.loads(detection_schema(record.settings).metadata[b"amvur"])["world_joints"] is True


def test_a_missing_model_or_package_is_one_line_that_says_what_to_do(mixed, model, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    text, other = tmp_path / "text.task", tmp_path / "other.task"
    text.write_text("no model")
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("face_landmarks_detector.tflite", b"")
    for given, words in (
        (
            None,
            "no hand_landmarker.task in this folder: give the path or URL of MediaPipe's .*task, from http",
        ),
        (str(tmp_path / "none.task"), "there is no '.*none.task': give"),
        (str(tmp_path), "can't be read"),
        (str(text), "does not hold MediaPipe's hand landmark network: give"),
        (str(other), "does not hold MediaPipe's hand landmark network: give"),
    ):
        with pytest.raises(UserError, match=words) as error:
            detect(str(mixed), out, given)
        assert "\n" not in str(error.value)
    hollow = tmp_path / "hollow.task"
    with zipfile.ZipFile(hollow, "w") as file:
        file.writestr("hand_landmarks_detector.tflite", b"not a network")
    with pytest.raises(UserError, match="can't be used"):
        detect(str(mixed), str(tmp_path / "hollow"), str(hollow))
    assert not os.path.lexists(out)
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(UserError, match=r"pip install 'amvur-annotator\[detect\]'"):
        read_model(model)


def test_a_folder_of_other_things_is_refused(mixed, model, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds files but is not a label set"):
        detect(str(mixed), str(tmp_path / "full"), model)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "_run.json").write_text('{"settings": {"checkpoint": "default"}}')
    with pytest.raises(UserError, match="made by another command"):
        detect(str(mixed), str(tmp_path / "labels"), model)


def test_the_rows_read_as_one_table_with_those_of_a_mesh(detected):
    out, _, _ = detected
    rows = pq.read_table(out / "data")
    joined = pa.concat_tables([label_schema(9).empty_table(), rows], promote_options="default")
    assert joined.num_rows == rows.num_rows and joined["vertices_mm"].null_count == rows.num_rows
