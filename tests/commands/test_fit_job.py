"""`amvur fit`: landmarks that were found to a label set, on Ray, in any state of the folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import roma
import torch
from PIL import Image
from pycocotools.coco import COCO

import annotator
from annotator.commands.detect import DetectSettings, detection_schema
from annotator.commands.filter import Keep, filter_labels
from annotator.commands.fit import fit, fit_shard
from annotator.config import FitConfig
from annotator.errors import UserError
from annotator.export import export_labels
from annotator.hand import load_hand
from annotator.hand.layer import HandLayer
from annotator.job.options import ComputeOptions
from annotator.job.record import RunRecord, write_run_record
from annotator.labels.schema import SCHEMA_VERSION, encode_table, label_schema, labels_to_table, without_hand
from annotator.photos.crops import box_around_joints
from annotator.quality.metrics import pa_mpjpe
from annotator.report import write_report
from annotator.sources.entry import Entry, ListedHand
from tests.conftest import SHARED
from tests.fitting.test_fit import drawn
from tests.support.killed_run import changed_ns, kill_after_first_shard
from trainer.convert.convert import convert

pytestmark = pytest.mark.slow

HAND = load_hand("open")
SMALL = ComputeOptions(workers=1, shard_size=4)
PHOTOS, PX_PER_MM = 18, 1.5
WIDTH, HEIGHT = 640, 480


def truth_of(count: int):
    """Hands in photos: joints in mm (count, 21, 3), which are right, and landmarks in pixels, depth with them."""
    _, joints, _, _ = drawn(count, 31)
    right = np.arange(count) % 3 != 1
    joints = np.where(right[:, None, None], joints, joints * [-1, 1, 1])
    return joints, right, joints * PX_PER_MM + [WIDTH / 2, HEIGHT / 2, 0]


@pytest.fixture(scope="module")
def truth():
    return truth_of(PHOTOS)


@pytest.fixture(scope="module")
def found(truth, tmp_path_factory) -> Path:
    """A label set of `detect`: 16 photos with one or two hands, one of a wall, one truncated."""
    _, right, points = truth
    photos = tmp_path_factory.mktemp("photos")
    folder = tmp_path_factory.mktemp("found") / "labels"
    settings = DetectSettings(SCHEMA_VERSION, str(photos), "hand_landmarker-0", 2, False)
    schema = detection_schema(settings, {"camera_name": pa.string()})
    rows, hand_rows, hand = [], [], 0
    for number in range(18):
        place = photos / f"{number:02d}.jpg"
        Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(place)
        row = {"image_uri": str(place), "image_id": place.name, "duplicate": False, "hand_index": -1}
        row |= {"camera_name": f"c{number % 2}", "width": WIDTH, "height": HEIGHT}
        if number == 5:
            rows.append(row | without_hand("no_hand_found", "the detector found no hand"))
        elif number == 9:
            rows.append(row | without_hand("truncated", "ends early") | {"width": None, "height": None})
        else:
            for index in range(1 + (number in (2, 11))):
                hand_rows.append(len(rows))
                rows.append(
                    row
                    | {"status": "ok", "hand_index": index, "box_source": "detector", "detection_score": 0.9}
                    | {"is_right": bool(right[hand]), "side_score": 0.97}
                )
                hand += 1
    assert hand == PHOTOS
    hands = {
        "box_xyxy": np.stack([box_around_joints(joints) for joints in points[..., :2]]),
        "joints2d_px": points[..., :2],
        "landmark_depth_px": points[..., 2],
    }
    (folder / "data").mkdir(parents=True)
    table = labels_to_table(rows, hands, hand_rows, schema)
    cut = [row["image_id"] for row in rows].index("08.jpg")  # two files, as of two shards
    for shard, part in enumerate((table.slice(0, cut), table.slice(cut))):
        (folder / "data" / f"shard-{shard:07d}.parquet").write_bytes(encode_table(part))
    write_run_record(str(folder), RunRecord(settings, outcomes={"ok": 16}))
    return folder


@pytest.fixture(scope="module")
def fitted(found, tmp_path_factory, local_ray):
    labels = tmp_path_factory.mktemp("out") / "labels"
    reported = []
    record = fit(str(found), str(labels), compute=SMALL, on_progress=reported.append)
    return labels, record, reported


def contents(labels: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (labels / "data").iterdir()}


def test_every_row_of_the_detections_becomes_one_of_the_labels(found, fitted, truth):
    labels, record, reported = fitted
    joints, right, points = truth
    before, after = pq.read_table(found / "data").to_pylist(), pq.read_table(labels / "data").to_pylist()
    same = ("image_uri", "image_id", "hand_index", "status", "reason", "error", "width", "camera_name")
    same += ("is_right", "detection_score", "box_source")
    assert [[row[name] for name in same] for row in after] == [[row[name] for name in same] for row in before]
    assert record.outcomes == {"ok": 16, "no_hand: no_hand_found": 1, "unreadable: truncated": 1}
    assert reported[-1].photos == reported[-1].total == 18 and len(list((labels / "data").iterdir())) == 5
    assert (labels / "faces.parquet").exists()
    hands = [row for row in after if row["status"] == "ok"]
    fits = np.array([row["joints3d_mm"] for row in hands])
    assert pa_mpjpe(fits, joints).mean() < 1.5
    assert [row["is_right"] for row in hands] == right.tolist()
    assert np.abs(np.array([row["joints2d_px"] for row in hands]) - points[..., :2]).mean() < 2
    assert {row["checkpoint"] for row in hands} == {record.settings.checkpoint}
    assert record.settings.checkpoint.startswith("fit-")


def test_columns_of_a_fit_agree_with_each_other_as_those_of_any_label(fitted):
    labels, _, _ = fitted
    table = pq.read_table(labels / "data")
    known = label_schema(HAND.vertex_count)
    assert all(table.schema.field(field.name).equals(field) for field in known)
    facts = json.loads(table.schema.metadata[b"amvur"])
    assert facts["hand"] == HAND.id and facts["calibration"]["fitted_on"] and not facts["std_is_constant"]
    layer = HandLayer(HAND)
    for row in table.to_pylist():
        if row["status"] != "ok":
            assert row["vertices_mm"] is None and row["camera"] is None
            continue
        joints, camera = np.array(row["joints3d_mm"]), row["camera"]
        x0, y0, x1, _ = row["crop_xyxy"]
        half = (x1 - x0) / 2
        rotated = joints @ roma.rotvec_to_rotmat(torch.tensor(camera["rotation"])).numpy().T
        in_crop = camera["scale"] * rotated[:, :2] + camera["translation"]
        seen = in_crop * half + [x0 + half, y0 + half]
        np.testing.assert_allclose(seen, row["joints2d_px"], atol=0.2)
        moved = joints + camera["cam_t_mm"]
        pinhole = camera["focal_px"] * moved[:, :2] / moved[:, 2:] + camera["principal_px"]
        assert np.linalg.norm(pinhole - row["joints2d_px"], axis=1).mean() < 0.08 * 2 * half
        rotations = roma.rotvec_to_rotmat(torch.tensor(row["pose"]).view(1, 16, 3))
        vertices, _ = layer(rotations, torch.tensor(row["betas"])[None])
        side = [1, 1, 1] if row["is_right"] else [-1, 1, 1]
        np.testing.assert_allclose(vertices[0].numpy() * side, row["vertices_mm"], atol=0.1)
        std = np.linalg.norm(np.array(row["joints3d_std_mm"])[1:], axis=1)
        assert not np.any(row["joints3d_std_mm"][0]) and std.min() > 0
        assert row["joint_std_mm"] == pytest.approx(std.mean(), rel=0.01)
        assert row["max_joint_std_mm"] == pytest.approx(std.max(), rel=0.01)
        assert 0.2 < row["visible_fraction"] < 0.9
        assert row["visible_fraction"] == pytest.approx(np.mean(row["vertex_visible"]), abs=1e-3)


def test_a_hand_far_from_the_middle_of_the_photo_is_rotated_to_the_camera_it_was_seen_by():
    """True pinhole views, 27 degrees off the axis: palms point where they do in the camera's axes."""
    _, joints, _, _ = drawn(40, 77)
    focal_px = 1.2 * WIDTH
    position_mm = np.array([-250.0, 180, 600])
    moved = joints + position_mm
    seen_px = focal_px * moved[..., :2] / moved[..., 2:] + [WIDTH / 2, HEIGHT / 2]
    ray = position_mm / np.linalg.norm(position_mm)
    depth_px = joints @ ray * focal_px / np.linalg.norm(position_mm)
    points = np.concatenate([seen_px, depth_px[..., None]], -1)
    entries = [
        Entry(
            f"/photos/{number}.jpg",
            str(number),
            number,
            hands=(ListedHand(None, 1.0, tuple(map(tuple, one.tolist()))),),
            focal_px=focal_px,
            extra={"width": WIDTH, "height": HEIGHT},
        )
        for number, one in enumerate(points)
    ]
    shard = fit_shard(entries, HAND, FitConfig(), "fit-0", "list")
    found = shard.hands["joints3d_mm"]
    palms, true_palms = (points[:, [5, 9, 17]].reshape(40, -1) for points in (found, joints))
    cosine = (palms * true_palms).sum(1) / np.linalg.norm(palms, axis=1) / np.linalg.norm(true_palms, axis=1)
    assert np.degrees(np.arccos(cosine)).mean() < 6
    # A wrist stands where it was: the focal length was given, and only the hand's size is a guess.
    away = shard.hands["camera"]["cam_t_mm"]
    assert np.degrees(np.arccos((away @ ray) / np.linalg.norm(away, axis=1))).max() < 1.5
    assert set(shard.hands["camera"]["focal_source"]) == {"given"}


def test_running_again_changes_no_file_and_other_settings_are_refused(found, fitted, tmp_path):
    labels, record, _ = fitted
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in labels.rglob("*")}
    assert fit(str(found), str(labels), compute=SMALL) == record
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in labels.rglob("*")} == before
    (tmp_path / "loose.yaml").write_text("pose_weight: 0.1")
    with pytest.raises(UserError, match="was labelled with checkpoint"):
        fit(str(found), str(labels), config=str(tmp_path / "loose.yaml"))
    with pytest.raises(UserError, match="pose_weight is 0.0, must be greater than 0"):
        (tmp_path / "loose.yaml").write_text("pose_weight: 0.0")
        fit(str(found), str(labels), config=str(tmp_path / "loose.yaml"))


def test_a_killed_run_resumes_to_the_same_bytes(found, fitted, tmp_path):
    undisturbed, record, _ = fitted
    labels = tmp_path / "labels"
    call = f"annotator.fit({str(found)!r}, {str(labels)!r}, compute=annotator.ComputeOptions(workers=1, shard_size=4))"
    committed = kill_after_first_shard(call, labels)
    assert 1 <= len(committed) < 5
    again = annotator.fit(str(found), str(labels), compute=SMALL)
    assert again.outcomes == record.outcomes and contents(labels) == contents(undisturbed)
    assert committed.items() <= changed_ns(labels).items()


def test_fits_are_reported_filtered_exported_and_converted_as_any_labels(fitted, tmp_path):
    labels, record, _ = fitted
    page = write_report(str(labels), tmp_path / "report", count=4).read_text()
    assert record.settings.checkpoint in page and record.settings.landmarks in page
    assert "Untrained" not in page and "not calibrated" not in page
    kept = filter_labels(str(labels), str(tmp_path / "best"), Keep(keep_best=0.5))
    assert kept.kept == 9
    export_labels(str(tmp_path / "best"), str(tmp_path / "hands.json"), "coco")
    exported = COCO(str(tmp_path / "hands.json"))
    assert len(exported.anns) == 9
    summary = convert(f"labels:{labels}", str(tmp_path / "examples"))
    assert summary.examples == PHOTOS and not summary.std_note
    (example, *_) = pq.read_table(tmp_path / "examples" / "data").to_pylist()
    assert np.shape(example["vertices_mm"]) == (HAND.vertex_count, 3) and example["image"]


def coco_file(folder: Path, points: np.ndarray, right: np.ndarray) -> Path:
    """Annotations as people write them: several notations of sides, unmarked joints, a photo without hands."""
    keypoints = np.concatenate([points[..., :2], np.full((len(points), 21, 1), 2.0)], -1)
    keypoints[1, [4, 8, 20]] = 0  # not annotated
    keypoints[3, 5:] = 0
    images = [
        {"id": 10 + n, "file_name": f"{n:02d}.jpg", "width": WIDTH, "height": HEIGHT}
        for n in range(len(points))
    ]
    images.append({"id": 99, "file_name": "wall.jpg", "width": WIDTH, "height": HEIGHT})
    sides = [{"id": 1, "name": "left hand"}, {"id": 2, "name": "Right Hand"}, {"id": 3, "name": "hand"}]
    annotations = []
    for n, marked in enumerate(keypoints):
        one = {"id": n, "image_id": 10 + n, "keypoints": marked.ravel().tolist(), "category_id": 3}
        if n % 2:
            one["is_right"] = bool(right[n])
        elif n:
            one["category_id"] = 2 if right[n] else 1
        annotations.append(one)
    people = {"id": 50, "image_id": 10, "lefthand_valid": False, "righthand_valid": True}
    people |= {"righthand_kpts": keypoints[2].ravel().tolist(), "righthand_box": [10, 20, 300, 200]}
    people |= {"lefthand_kpts": [0] * 63, "lefthand_box": [0, 0, 0, 0]}
    annotations.append(people)
    path = folder / "hands.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": sides}))
    return path


def test_keypoints_of_coco_become_meshes_that_say_how_sure_they_are(truth, fitted, tmp_path, local_ray):
    joints, right, points = truth
    count = 7
    record = fit(str(coco_file(tmp_path, points[:count], right)), str(tmp_path / "labels"), compute=SMALL)
    assert record.outcomes == {"ok": count - 1, "no_hand: too_few_joints": 1, "no_hand: not_listed": 1}
    rows = pq.read_table(tmp_path / "labels" / "data").to_pylist()
    assert [row["image_uri"] for row in rows[:2]] == [
        str(tmp_path / "00.jpg")
    ] * 2  # its second hand is WholeBody's
    by_hand = [row for row in rows if row["hand_index"] == 0 or row["status"] != "ok"]
    few = by_hand[3]
    assert (few["reason"], few["hand_index"]) == ("too_few_joints", 0)
    assert few["error"] == "5 of 21 joints are known, a fit needs 6"
    assert rows[-1]["image_id"] == "wall.jpg" and rows[-1]["hand_index"] == -1
    good = [n for n in range(count) if n != 3]
    fits = np.array([by_hand[n]["joints3d_mm"] for n in good])
    listed = [n for n in good if n]
    assert [by_hand[n]["is_right"] for n in listed] == right[listed].tolist()
    assert all(by_hand[n]["side_score"] == 1 for n in listed) and by_hand[0]["side_score"] < 1
    assert pa_mpjpe(fits[1:], joints[listed]).mean() < 6
    assert np.allclose(rows[1]["box_xyxy"], [10, 20, 310, 220])
    with_depth = pq.read_table(fitted[0] / "data", columns=["joint_std_mm"]).to_pylist()
    known = [row["joint_std_mm"] for row in with_depth if row["joint_std_mm"]][1:count]
    assert np.mean([by_hand[n]["joint_std_mm"] for n in listed]) > np.mean(known)


def test_what_holds_no_landmarks_is_refused_in_one_line(found, local_ray, tmp_path):
    out = str(tmp_path / "out")
    old = tmp_path / "old"
    (old / "data").mkdir(parents=True)
    table = pq.read_table(found / "data" / "shard-0000000.parquet")
    (old / "data" / "shard-0000000.parquet").write_bytes(encode_table(table.drop(["landmark_depth_px"])))
    half = tmp_path / "half"
    half.mkdir()
    (half / "_run.json").write_text('{"settings": {}}')
    listed = tmp_path / "list.json"
    listed.write_text('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}')
    for place, words in (
        (tmp_path / "nowhere", "has no landmarks: give the output of `amvur detect`"),
        (old, "no landmarks with depth: run `detect` of this amvur version into a new folder"),
        (half, "is unfinished: run the same `amvur detect` command again first"),
        (listed, "has no annotated hand"),
        (tmp_path / "none.json", "no such file"),
    ):
        with pytest.raises(UserError, match=words) as error:
            fit(str(place), out)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="was made by another command"):
        fit(str(found), str(found))
    with pytest.raises(UserError, match="images applies only to annotations"):
        fit(str(found), out, images=str(tmp_path))
    assert not Path(out).exists()


def test_real_hands_lie_under_their_fits(hand_scenes, local_ray, tmp_path):
    pytest.importorskip("mediapipe")
    from annotator.commands.detect import detect

    model = SHARED / "models" / "hand_landmarker.task"
    if not model.exists():
        pytest.skip("MediaPipe's model is not beside this checkout")
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((hand_scenes / "images").glob("*.jpg"))[::200]:
        (photos / path.name).write_bytes(path.read_bytes())
    detect(str(photos), str(tmp_path / "found"), str(model), compute=SMALL)
    fit(str(tmp_path / "found"), str(tmp_path / "labels"), compute=SMALL)
    marked, fitted = (
        [row for row in pq.read_table(tmp_path / name / "data").to_pylist() if row["status"] == "ok"]
        for name in ("found", "labels")
    )
    assert len(marked) == len(fitted) >= 6
    for before, after in zip(marked, fitted, strict=True):
        span = np.ptp(np.array(before["joints2d_px"]), axis=0).max()
        off = np.linalg.norm(np.array(after["joints2d_px"]) - before["joints2d_px"], axis=1).mean()
        assert off < 0.05 * span
        assert 60 < np.linalg.norm(after["joints3d_mm"][9]) < 130
        assert 5 < after["joint_std_mm"] < 60
