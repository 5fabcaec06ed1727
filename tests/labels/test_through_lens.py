"""Hands behind a lens: labels are those of the undistorted photo, with 2D in the photo's own pixels."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from annotator import UserError, load
from annotator.job.stages import decode_shard
from annotator.labels.arrays import array_of
from annotator.labels.crop_hands import CropHands, label_columns
from annotator.labels.schema import label_schema
from annotator.lens import Lens
from annotator.photos.camera import PhotoCamera
from annotator.photos.crops import Crops, crop_photo
from annotator.photos.view import view_of_box
from annotator.quality.metrics import align
from annotator.sources import ListSource
from annotator.sources.lists.camera_columns import has_lens
from trainer.convert.labels import label_tables
from trainer.synth import write_photos

cv2 = pytest.importorskip("cv2")
from tests.support.opencv_lens import FISHEYE, by_opencv, matrix, position_errors, through_fisheye  # noqa: E402

COUNT, SIZE_PX, WIDE_PX = 24, 256, 400


@pytest.mark.parametrize(
    "lens",
    [
        Lens(420, 424, 640, 512, "fisheye", FISHEYE),
        Lens(700, 690, 652, 498, "pinhole", (-0.25, 0.08, 0.001, -0.002, -0.01)),
        Lens(700, 650, 640, 512),
    ],
    ids=["fisheye", "pinhole", "two focal lengths"],
)
def test_a_true_hand_in_the_view_is_true_in_the_labels(lens):
    rng = np.random.default_rng(0)
    count = 40 if lens.model == "fisheye" else 15
    for number in range(count):
        away = Rotation.from_rotvec([0, np.radians(1.7 * number), 0]).as_matrix()
        away = Rotation.from_rotvec([0, 0, rng.uniform(0, 6.28)]).as_matrix() @ away
        joints = rng.normal(0, 40, (21, 3)) - [0, 0, 0]
        joints -= joints[0]
        wrist = away @ [0, 0, 500.0]
        seen = by_opencv(joints + wrist, lens)
        box = [*seen.min(0), *seen.max(0)]
        crop = crop_photo(
            np.zeros((64, 80, 3), np.uint8), 1280, 1024, 32, box,
            camera=PhotoCamera(lens.fx, (lens.cx, lens.cy), "given", lens),
        )  # fmt: skip
        view = crop.view[0]
        # By definition of a pinhole camera along the view's axis, written here.
        rotated = (joints + wrist) @ view.axes
        plane = rotated[:, :2] / rotated[:, 2:] / view.half_tan
        assert np.abs(plane).max() < 1  # the crop holds the hand
        assert np.abs(plane.max(0) + plane.min(0)).max() < 0.25  # in its middle
        assert np.abs(plane).max() > 0.5
        centre, half = crop.centre_px[0], crop.half_side_px[0]
        hand = CropHands(
            is_right=np.array([True]),
            joints3d_mm=(joints @ view.axes)[None],
            joints3d_std_mm=np.ones((1, 21, 3)),
            joints2d_px=(plane * half + centre)[None],
            joints2d_std_px=np.ones((1, 21, 2)),
            vertices_mm=np.zeros((1, 4, 3)),
            vertices_std_mm=np.ones((1, 4, 3)),
            visible=np.ones((1, 4), bool),
            scale_per_mm=np.ones(1),
            rotvec=np.zeros((1, 3)),
            translation=np.zeros((1, 2)),
        )
        label = label_columns(hand, crop)
        np.testing.assert_allclose(label["joints2d_px"][0], seen, atol=1e-6)
        np.testing.assert_allclose(label["joints3d_mm"][0], joints, atol=1e-3)
        np.testing.assert_allclose(label["camera"]["cam_t_mm"][0], wrist, atol=1e-3)
        # Std follows the view's local scale: here from a cloud of points.
        cloud = plane[3] * half + centre + rng.normal(0, 0.01, (20_000, 2))
        spread = view.photo_from_view((cloud - centre) / half).std(0) / 0.01
        np.testing.assert_allclose(label["joints2d_std_px"][0, 3], spread, rtol=0.03)
        assert not (hand.joints2d_px == label["joints2d_px"]).all()


def test_a_view_is_opencvs_undistorted_picture():
    """On the optical axis, the view of a fisheye photo is what `cv2.fisheye.undistortImage` makes of it."""
    lens = Lens(300, 300, 320.5, 240.5, "fisheye", FISHEYE)
    rng = np.random.default_rng(0)
    photo = np.asarray(
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(
            (641, 481), Image.Resampling.BICUBIC
        )
    )
    box = [220.5, 140.5, 420.5, 340.5]
    view = view_of_box(lens, box, 1.0)
    np.testing.assert_allclose(view.axes, np.eye(3), atol=1e-9)
    # A pinhole camera whose picture of 200 pixels is the view; OpenCV counts from the first pixel's centre.
    new = np.array([[100 / view.half_tan, 0, 99.5], [0, 100 / view.half_tan, 99.5], [0, 0, 1]])
    old = matrix(lens) - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    expected = cv2.fisheye.undistortImage(photo, old, np.array(FISHEYE), Knew=new, new_size=(200, 200))
    crop = crop_photo(photo, 641, 481, 200, box, camera=PhotoCamera(300, (320.5, 240.5), "given", lens))
    own = crop_photo(photo, 641, 481, 260, box, margin=1.3, camera=PhotoCamera(300, None, "given", lens))
    # The crop is padded: 1.3 times the box.
    shown = own.pixels[0]
    middle = np.asarray(Image.fromarray(crop.pixels[0]).crop((23, 23, 177, 177)).resize((200, 200)))
    assert np.abs(middle.astype(int) - expected).mean() < 2
    assert shown.shape == (260, 260, 3)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[list[np.ndarray], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("drawn")
    write_photos(folder, COUNT, 5, SIZE_PX)
    table = pq.read_table(folder / "truth.parquet")
    photos = [np.asarray(Image.open(folder / "images" / f"{k:06d}.jpg").convert("RGB")) for k in range(COUNT)]
    camera = table["camera"].combine_chunks()
    truth = {name: array_of(table[name]) for name in ("joints3d_mm", "vertices_mm", "box_xyxy")}
    truth |= {name: array_of(camera.field(name)) for name in ("cam_t_mm", "principal_px")}
    truth["focal_px"] = camera.field("focal_px").to_numpy()
    truth["right"] = table["is_right"].to_numpy().astype(float)
    return photos, truth


def errors(label: dict[str, Any], joints: np.ndarray, wrists: np.ndarray) -> dict[str, float]:
    found = label["joints3d_mm"].astype(np.float64)
    pa = float(np.linalg.norm(align(found, joints) - joints, axis=-1).mean())
    return {"pa": pa} | position_errors(label | {"cam_t_mm": label["camera"]["cam_t_mm"]}, joints, wrists)


@pytest.mark.slow
def test_drawn_hands_through_a_fisheye_come_back_as_from_the_undistorted_photo(drawn, capsys):
    photos, truth = drawn
    predictor = load("default", device="cpu")
    cut_px, margin = predictor.checkpoint.cut_px, predictor.checkpoint.cut_margin
    crops: dict[str, list[Crops]] = {"undistorted": [], "fisheye": [], "lens not given": []}
    joints, wrists = [], []
    for k, photo in enumerate(photos):
        focal, principal = float(truth["focal_px"][k]), truth["principal_px"][k]
        # The fisheye looks 45 degrees past the hand.
        to_hand = truth["vertices_mm"][k].mean(0) + truth["cam_t_mm"][k]
        across = np.array([np.cos(k), np.sin(k), 0])
        rotation = Rotation.from_rotvec(np.cross([0, 0, 1], across) * np.radians(45)).as_matrix()
        rotation = rotation @ Rotation.align_vectors([[0, 0, 1]], [to_hand])[0].as_matrix()
        moved = ((truth["vertices_mm"][k] + truth["cam_t_mm"][k]) @ rotation.T).astype(np.float64)
        lens = Lens(0.6 * focal, 0.61 * focal, 0, 0, "fisheye", FISHEYE)
        # The photo is a part of the fisheye's, with the hand in its middle.
        cx, cy = WIDE_PX / 2 - by_opencv(moved, lens).mean(0)
        lens = Lens(lens.fx, lens.fy, float(cx), float(cy), "fisheye", FISHEYE)
        seen = by_opencv(moved, lens)
        assert seen.min() > 0 and seen.max() < WIDE_PX
        warped = through_fisheye(photo, focal, principal, rotation, lens, WIDE_PX)
        joints.append(truth["joints3d_mm"][k] @ rotation.T)
        wrists.append(rotation @ truth["cam_t_mm"][k])
        camera = PhotoCamera(focal, tuple(principal), "given")
        crops["undistorted"].append(
            crop_photo(photo, SIZE_PX, SIZE_PX, cut_px, truth["box_xyxy"][k].tolist(), truth["right"][k], margin,
                       camera=camera)
        )  # fmt: skip
        box = [*seen.min(0), *seen.max(0)]
        for name, given in (("fisheye", lens), ("lens not given", None)):
            camera = PhotoCamera(0.605 * focal, (lens.cx, lens.cy), "given", given)
            crops[name].append(
                crop_photo(warped, WIDE_PX, WIDE_PX, cut_px, box, truth["right"][k], margin, camera=camera)
            )
    found = {}
    for name, parts in crops.items():
        label = predictor.predict_crops(Crops.stack(parts))
        is_plain = name == "undistorted"
        found[name] = errors(
            label,
            truth["joints3d_mm"] if is_plain else np.array(joints),
            truth["cam_t_mm"] if is_plain else np.array(wrists),
        )
        with capsys.disabled():
            print("\n", name, {key: round(value, 2) for key, value in found[name].items()})
    plain, fisheye, wrong = found["undistorted"], found["fisheye"], found["lens not given"]
    assert fisheye["mpjpe"] < plain["mpjpe"] * 1.1 + 0.5
    assert fisheye["pa"] < plain["pa"] * 1.1 + 0.3
    assert fisheye["ray_deg"] < plain["ray_deg"] + 0.2 and fisheye["depth"] < plain["depth"] + 0.03
    assert wrong["ray_deg"] > 5 * fisheye["ray_deg"] and wrong["depth"] > 2 * fisheye["depth"]
    assert wrong["mpjpe"] > fisheye["mpjpe"]


def test_lists_take_the_distortion_as_a_list_or_as_text(tmp_path):
    photo = io.BytesIO()
    Image.new("RGB", (640, 480), (90, 60, 30)).save(photo, "PNG")
    (tmp_path / "a.png").write_bytes(photo.getvalue())
    columns = "path,fx,fy,cx,cy,camera_model,distortion,x1,y1,x2,y2"
    (tmp_path / "hands.csv").write_text(
        f'{columns}\na.png,300,300,320,240,fisheye,"[-0.02, 0.01, -0.004, 0.0005]",10,10,90,90\n'
        'a.png,300,300,320,240,,"0.1 0.2 0 0",10,20,90,90\na.png,300,300,320,240,,,10,30,90,90\n'
        'a.png,300,300,320,240,fisheye,"0.1 0.2",10,40,90,90\na.png,300,300,320,240,omni,,10,50,90,90\n'
        'a.png,300,300,320,240,fisheye,"-3 0 0 0",600,400,640,480\n'
    )
    entries = list(ListSource(str(tmp_path / "hands.csv")))
    assert [entry.fault.message[:12] if entry.fault else None for entry in entries] == [
        *(None, None, None, "the distorti", "the camera m", None)
    ]
    shard = decode_shard(entries, 32)
    fisheye, distorted, plain = shard.crops.view
    assert fisheye.lens == Lens(300, 300, 320, 240, "fisheye", FISHEYE)
    assert distorted.lens.distortion == (0.1, 0.2, 0, 0) and plain is None
    assert [row["reason"] for row in shard.rows[3:]] == ["bad_row", "bad_row", "box_outside"]
    assert "field of view of the lens" in shard.rows[5]["error"]
    assert shard.rows[0]["distortion"] == "[-0.02, 0.01, -0.004, 0.0005]"


def test_labels_behind_a_lens_are_refused_where_a_pinhole_is_assumed(tmp_path):
    schema = label_schema(4, {"amvur": "{}"}, {"fx": pa.string(), "distortion": pa.string()})
    assert has_lens(schema.names) and not has_lens(label_schema(4, passed={"distortion": pa.string()}).names)
    (tmp_path / "data").mkdir()
    facts = {"schema_version": 2, "hand": "open", "checkpoint": "a", "calibration": None}
    schema = schema.with_metadata({"amvur": json.dumps(facts)})
    pq.write_table(schema.empty_table(), tmp_path / "data" / "shard-0000000.parquet")
    with pytest.raises(UserError, match="cameras with distortion: undistort and label"):
        label_tables(str(tmp_path))


@pytest.mark.parametrize(
    ("fx", "fy", "focal_px", "source", "message"),
    [
        ("300", "310", 305.0, "given", "fx is 300 and fy is 310: resize photos"),
        ("300", "300.2", 300.1, "given", None),
        ("300", "300.6", 300.3, "given", "fx is 300 and fy is 300.6"),
        ("300", "", 300.0, "given", None),
        ("300", "150", 300.0, "given", None),  # pixels twice as high as wide, stretched along y
        ("300", "310", 500.0, "assumed", None),  # a fit reads no camera columns
    ],
)
def test_labels_of_two_focal_lengths_are_refused_where_one_is_assumed(
    fx, fy, focal_px, source, message, tmp_path
):
    facts = {"schema_version": 2, "hand": "open", "checkpoint": "a", "calibration": {}}
    schema = label_schema(4, {"amvur": json.dumps(facts)}, {"fx": pa.string(), "fy": pa.string()})
    row = dict.fromkeys(schema.names) | {"image_id": "a.png", "fx": fx, "fy": fy}
    row["camera"] = {"focal_px": focal_px, "focal_source": source}
    empty = dict.fromkeys(schema.names) | {"image_id": "b.png"}
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist([empty, row], schema), tmp_path / "data" / "shard-0000000.parquet")
    if message is None:
        assert label_tables(str(tmp_path)).hand == "open"
    else:
        with pytest.raises(UserError, match=f"'a.png': {message}"):
            label_tables(str(tmp_path))
