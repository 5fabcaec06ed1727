"""Photos given in Python, with boxes and cameras."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from annotator import Camera, UserError
from annotator.job.stages import decode_shard
from annotator.photos.errors import PhotoError
from annotator.sources import ListSource
from tests.support.noise_photos import noise_photos


@pytest.fixture(scope="module")
def photos():
    return noise_photos()


def test_wrong_photos_are_refused_by_name(predictor, tmp_path):
    with pytest.raises(UserError, match="uint8 RGB, got float64"):
        predictor.predict([np.zeros((10, 10, 3))])
    with pytest.raises(PhotoError, match="no such file"):
        predictor.predict([tmp_path / "none.jpg"])
    assert predictor.predict([]) == []


CAMERAS = [
    Camera(150, 152, 66, 47, "fisheye", (-0.02, 0.01, -0.004, 0.0005)),
    Camera(130, 128, 60, 52, "pinhole", (-0.2, 0.05, 0.001, -0.002)),
    Camera(140),
    None,
]


def test_cameras_give_the_labels_of_a_lists_columns(lively, photos, tmp_path):
    boxes = [[30.0, 20.0, 80.0, 75.0]] * 4
    rows = ["path,x1,y1,x2,y2,handedness,fx,fy,cx,cy,camera_model,distortion"]
    for k, (photo, camera) in enumerate(zip(photos, CAMERAS, strict=True)):
        Image.fromarray(photo).save(tmp_path / f"{k}.png")
        if camera is None:
            numbers = ["", "", "", "", "", ""]
        else:
            given = [camera.fx, camera.fy, camera.cx, camera.cy, camera.model]
            numbers = ["" if value is None else str(value) for value in given]
            numbers.append(f'"{list(camera.distortion)}"' if camera.distortion else "")
        rows.append(",".join([f"{k}.png", "30", "20", "80", "75", "right", *numbers]))
    (tmp_path / "list.csv").write_text("\n".join(rows))
    checkpoint = lively.checkpoint
    shard = decode_shard(
        list(ListSource(str(tmp_path / "list.csv"))), checkpoint.cut_px, margin=checkpoint.cut_margin
    )
    listed = lively.predict_crops(shard.crops)
    found = lively.predict(photos, side="right", boxes_xyxy=boxes, cameras=CAMERAS)
    files = [tmp_path / f"{k}.png" for k in range(4)]
    of_files = lively.predict(files, side="right", boxes_xyxy=boxes, cameras=CAMERAS)
    assert [label["camera"]["focal_source"] for label in found] == ["given", "given", "given", "assumed"]
    for k in range(4):
        for label in (found[k], of_files[k]):
            for name in ("joints3d_mm", "joints2d_px", "crop_xyxy", "cam_t_std_mm"):
                np.testing.assert_allclose(label[name], listed[name][k], rtol=1e-4, atol=1e-3, err_msg=name)
            for name in ("cam_t_mm", "focal_px", "principal_px"):
                np.testing.assert_allclose(label["camera"][name], listed["camera"][name][k], rtol=1e-4)
    plain = lively.predict(photos, side="right", boxes_xyxy=boxes)
    assert not np.allclose(plain[0]["joints2d_px"], found[0]["joints2d_px"], atol=0.1)


@pytest.mark.parametrize(
    "cameras, words",
    [
        ([Camera(100)], "cameras has 1 entries for 4 photos: give one for each"),
        ([None, None, None, Camera(-3)], "fx is -3: expected a positive number of pixels"),
        ([Camera(100, cx=5), None, None, None], "only one of cx and cy is given"),
        ([Camera(100, model="omni"), None, None, None], "the camera model is 'omni': expected pinhole or"),
        ([Camera(100, distortion=(0.1,)), None, None, None], "the distortion has 1 coefficients"),
    ],
)
def test_impossible_cameras_are_refused_in_one_line(lively, photos, cameras, words):
    with pytest.raises(UserError, match=words) as error:
        lively.predict(photos, cameras=cameras)
    assert "\n" not in str(error.value)
