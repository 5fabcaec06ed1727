"""Tracks behind a lens: hands are in the photo's camera, and OpenCV sees them where the labels do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from annotator import UserError, load
from annotator.labels.arrays import array_of
from annotator.labels.schema import label_schema, labels_to_table
from annotator.lens import Lens
from annotator.photos.camera import PhotoCamera
from annotator.photos.crops import Crops, crop_photo
from annotator.photos.view import view_of_square
from tests.support.moving_labels import HAND, RATE_HZ
from trainer.synth.write_sequences import write_sequences

cv2 = pytest.importorskip("cv2")
from tests.support.lens_labels import (  # noqa: E402
    COLUMNS,
    FRAMES,
    MISSING,
    columns_of,
    listed,
    table_of,
    tracked_rows,
    true_hands,
)
from tests.support.opencv_lens import FISHEYE, by_opencv, position_errors, through_fisheye  # noqa: E402

LENSES = {
    "fisheye": Lens(250, 253, 510, 490, "fisheye", FISHEYE),
    "pinhole": Lens(420, 415, 505, 492, "pinhole", (-0.25, 0.08, 0.001, -0.002, -0.01)),
    "two focal lengths": Lens(420, 390, 500, 500),
}


def apart(rows: list[dict[str, Any]], lens: Lens) -> list[float]:
    """How far 2D joints are from the 3D ones before OpenCV's camera, in sides of the crop."""
    found = []
    for row in rows:
        seen = by_opencv(np.array(row["joints3d_mm"]) + row["camera"]["cam_t_mm"], lens)
        side = row["crop_xyxy"][2] - row["crop_xyxy"][0]
        found.append(float(np.linalg.norm(seen - row["joints2d_px"], axis=1).mean() / side))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", LENSES)
def test_a_hand_that_crosses_the_photo_of_a_lens_is_one_track_in_its_camera(name):
    lens = LENSES[name]
    pose, joints, wrists = true_hands(65 if lens.model == "fisheye" else 25)
    table = table_of(pose, joints, wrists, lens)
    rows = tracked_rows(table)
    assert [row["source"] == "interpolated" for row in rows] == [k in MISSING for k in range(FRAMES)]
    assert {row["track_id"] for row in rows} == {0}
    for k, row in enumerate(rows):
        joints3d, camera = np.array(row["joints3d_mm"], np.float64), row["camera"]
        x0, y0, x1, _ = row["crop_xyxy"]
        true_px = by_opencv(joints[k] + wrists[k], lens)
        assert np.linalg.norm(np.array(row["joints2d_px"]) - true_px, axis=1).mean() < 0.05 * (x1 - x0)
        # The columns of the weak-perspective camera are those of the crop's view.
        half = (x1 - x0) / 2
        view = view_of_square(lens, (x0 + half, y0 + half), half)
        rotated = joints3d @ Rotation.from_rotvec(camera["rotation"]).as_matrix().T
        weak = view.nearest_in_photo(camera["scale"] * rotated[:, :2] + camera["translation"])
        np.testing.assert_allclose(weak, row["joints2d_px"], atol=0.2)
    before = [row for row in table.to_pylist() if row["status"] == "ok"]
    # OpenCV sees the 3D joints where the 2D ones are, as far as a weak-perspective camera is a pinhole.
    assert np.mean(apart(rows, lens)) < 1.2 * np.mean(apart(before, lens)) < 0.03
    assert max(apart([rows[k] for k in MISSING], lens)) < max(apart(before, lens))
    kept = [k for k in range(FRAMES) if k not in MISSING]
    raw = position_errors(columns_of(before), joints[kept], wrists[kept])
    smooth = position_errors(columns_of(rows), joints, wrists)
    assert smooth["mpjpe"] < 0.7 * raw["mpjpe"]
    assert smooth["ray_deg"] < 0.5 and smooth["depth"] < 0.03
    # Metres: the way from frame to frame is the true one.
    steps = np.linalg.norm(np.diff(columns_of(rows)["cam_t_mm"], axis=0), axis=1)
    true_steps = np.linalg.norm(np.diff(wrists, axis=0), axis=1)
    assert np.abs(steps - true_steps).mean() < 0.2 * true_steps.mean()


def test_a_lens_that_the_columns_do_not_tell_is_refused_in_one_line():
    lens = LENSES["fisheye"]
    table = table_of(*true_hands(20), lens)
    longer = table.set_column(
        table.schema.get_field_index("fx"), "fx", pa.array([1.2 * lens.fx] * len(table), pa.float64())
    )
    with pytest.raises(UserError, match=r"'0': its pixels are not square: add cx and cy"):
        tracked_rows(longer)


SMALL_PX, WIDE_PX, COUNT = 256, 420, 24


@pytest.mark.slow
def test_a_drawn_sequence_through_a_fisheye_is_tracked_as_the_undistorted_one(tmp_path: Path):
    write_sequences(tmp_path, 1, COUNT, 5, SMALL_PX)
    truth = pq.read_table(tmp_path / "truth.parquet")
    camera = truth["camera"].combine_chunks()
    wrists, principal = (array_of(camera.field(name)) for name in ("cam_t_mm", "principal_px"))
    focal = float(camera.field("focal_px")[0].as_py())
    joints, vertices = array_of(truth["joints3d_mm"]), array_of(truth["vertices_mm"]) + wrists[:, None]
    # The fisheye looks 45 degrees past the hand, and the photo is a part of its.
    rotation = Rotation.from_rotvec([0, np.radians(45), 0]).as_matrix()
    rotation = rotation @ Rotation.align_vectors([[0, 0, 1]], [vertices.mean((0, 1))])[0].as_matrix()
    moved = (vertices @ rotation.T).astype(np.float64)
    lens = Lens(0.6 * focal, 0.61 * focal, 0, 0, "fisheye", FISHEYE)
    cx, cy = WIDE_PX / 2 - by_opencv(moved.reshape(-1, 3), lens).mean(0)
    lens = replace(lens, cx=float(cx), cy=float(cy))
    predictor = load("default", device="cpu")
    cut_px, margin = predictor.checkpoint.cut_px, predictor.checkpoint.cut_margin
    score = float(truth["is_right"][0].as_py())
    plain, fisheye = [], []
    for k in range(COUNT):
        photo = np.asarray(Image.open(tmp_path / "images" / f"s0000-f{k:04d}.jpg").convert("RGB"))
        seen = by_opencv(moved[k], lens)
        assert seen.min() > 0 and seen.max() < WIDE_PX
        warped = through_fisheye(photo, focal, principal[k], rotation, lens, WIDE_PX)
        for parts, pixels, box, own in (
            (plain, photo, truth["box_xyxy"][k].as_py(), PhotoCamera(focal, tuple(principal[k]), "given")),
            (
                fisheye,
                warped,
                [*seen.min(0), *seen.max(0)],
                PhotoCamera(0.605 * focal, (lens.cx, lens.cy), "given", lens),
            ),
        ):
            size = pixels.shape[0]
            parts.append(crop_photo(pixels, size, size, cut_px, box, score, margin, camera=own))
    found = {}
    for name, parts, own in (("plain", plain, {}), ("fisheye", fisheye, listed(lens))):
        rows = [
            {"image_uri": f"{k}.jpg", "image_id": str(k), "duplicate": False, "hand_index": 0, "status": "ok"}
            | {"width": SMALL_PX, "height": SMALL_PX, "sequence": "one", "frame": k, "time_s": k / RATE_HZ}
            | {"checkpoint": predictor.checkpoint.id}
            | own
            for k in range(COUNT)
        ]
        columns = (
            COLUMNS | {"time_s": pa.float64()}
            if own
            else {"sequence": pa.string(), "frame": pa.int32(), "time_s": pa.float64()}
        )
        schema = label_schema(HAND.vertex_count, None, columns)
        table = labels_to_table(rows, predictor.predict_crops(Crops.stack(parts)), range(COUNT), schema)
        made = columns_of(tracked_rows(table))
        back = rotation if own else np.eye(3)
        found[name] = position_errors(made, joints @ back.T, wrists @ back.T)
    assert found["fisheye"]["mpjpe"] < found["plain"]["mpjpe"] * 1.15 + 0.5, found
    assert found["fisheye"]["ray_deg"] < found["plain"]["ray_deg"] + 0.3, found
    assert found["fisheye"]["depth"] < found["plain"]["depth"] + 0.03, found
