"""Labels of single photos: frames, left hands."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

import annotator
from annotator import Camera, UserError
from annotator.hand.anatomy import chirality
from annotator.hand.open_hand import open_hand
from annotator.job.shard import Shard
from annotator.job.stages import decode_shard, predict_shard
from annotator.job.stages.predict import ModelBrokenError
from annotator.photos.crops import Crops, crop_photo
from annotator.photos.errors import PhotoError
from annotator.predictor import SURELY_RIGHT, Predictor
from annotator.quality.calibration import AxisLaws, Calibration, PowerLaw
from annotator.sources import ListSource
from trainer.synth import SyntheticHands


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (4, 6, 8, 3), np.uint8)
    return [np.asarray(Image.fromarray(p).resize((120 + 20 * i, 100))) for i, p in enumerate(small)]


def project(label):
    camera = label["camera"]
    rotation = roma.rotvec_to_rotmat(torch.tensor(camera["rotation"])).numpy()
    crop = camera["scale"] * (label["joints3d_mm"] @ rotation.T)[:, :2] + camera["translation"]
    x0, y0, x1, y1 = label["crop_xyxy"]
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2]) + crop * (x1 - x0) / 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_labels_camera_projects_its_joints_to_its_2d_joints(lively, photos, side):
    for label in lively.predict(photos, side=side):
        np.testing.assert_allclose(project(label), label["joints2d_px"], atol=1e-2)
        assert label["joints3d_mm"].shape == (21, 3) and np.allclose(label["joints3d_mm"][0], 0, atol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_cam_t_and_focal_reproduce_the_2d_joints(lively, photos, side):
    for photo, label in zip(photos, lively.predict(photos, side=side), strict=True):
        camera = label["camera"]
        np.testing.assert_array_equal(camera["principal_px"], [photo.shape[1] / 2, photo.shape[0] / 2])
        x, y, z = (label["joints3d_mm"] + camera["cam_t_mm"]).T
        back = np.stack([x / z, y / z], 1) * camera["focal_px"] + camera["principal_px"]
        x0, _, x1, _ = label["crop_xyxy"]
        error = np.linalg.norm(back - label["joints2d_px"], axis=1) / (x1 - x0)
        assert error.mean() < 0.025
        assert camera["focal_source"] == "assumed" and camera["cam_t_mm"][2] > 0


def test_a_left_hand_is_the_mirrored_photos_right_hand_mirrored_back(lively, photos):
    mirrored = [np.ascontiguousarray(photo[:, ::-1]) for photo in photos]
    for photo, left, right in zip(
        photos, lively.predict(photos, side="left"), lively.predict(mirrored, side="right"), strict=True
    ):
        flip3d, width = np.array([-1, 1, 1]), photo.shape[1]
        np.testing.assert_allclose(left["vertices_mm"], right["vertices_mm"] * flip3d, atol=1e-2)
        np.testing.assert_allclose(left["joints2d_px"][:, 0], width - right["joints2d_px"][:, 0], atol=1e-2)
        np.testing.assert_allclose(left["pose"], right["pose"], atol=1e-3)
        np.testing.assert_array_equal(left["vertex_visible"], right["vertex_visible"])
        assert not left["is_right"] and right["is_right"]


def test_a_predictor_leaves_its_checkpoint_as_it_was_loaded(lively, lively_file):
    """It folds and moves a copy: what is saved again is the same checkpoint."""
    assert lively.checkpoint.to_bytes() == Path(lively_file).read_bytes()


def test_chirality_says_which_hand_it_is(predictor, photos):
    for side, sign in (("left", -1), ("right", 1)):
        joints = np.stack([label["joints3d_mm"] for label in predictor.predict(photos, side=side)])
        assert (np.sign(chirality(joints)) == sign).all()


def test_auto_takes_the_side_the_network_sees_and_predicts_it_mirrored(lively, photos):
    head = lively.network.side.linear
    saved = head.bias.detach().clone()
    # Of a photo and its mirror image one shows a left hand.
    photos = photos + [np.ascontiguousarray(photo[:, ::-1]) for photo in photos]
    try:
        with torch.no_grad():
            head.bias -= 3.0  # never sure of a right hand, so both images of each photo count
        found = lively.predict(photos)
        sides = [label["is_right"] for label in found]
        assert sum(sides) == len(photos) / 2
        for side in ("left", "right"):
            given = lively.predict(photos, side=side)
            for label, expected in zip(found, given, strict=True):
                if label["is_right"] == (side == "right"):
                    np.testing.assert_allclose(label["vertices_mm"], expected["vertices_mm"], atol=1e-2)
                    assert label["side_score"] >= 0.5 and expected["side_score"] is None
    finally:
        with torch.no_grad():
            head.bias.copy_(saved)


def test_a_hand_that_may_be_left_is_looked_at_in_the_mirror_and_both_answers_count(lively, photos):
    network = lively.network
    bias = network.side.linear.bias
    saved = bias.detach().clone()

    def shown(photo, mirrored):
        crop_px = lively.checkpoint.info.network.crop_px
        pixels = crop_photo(photo, photo.shape[1], photo.shape[0], crop_px).pixels
        image = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return float(network(image.flip(-1) if mirrored else image).is_right)

    try:
        for shift in (-1.0, 0.0, 4.0):
            with torch.no_grad():
                bias.copy_(saved + shift)
            for photo, label in zip(photos, lively.predict(photos), strict=True):
                right = shown(photo, False)
                if right < SURELY_RIGHT:
                    right = (right + 1 - shown(photo, True)) / 2
                assert label["is_right"] == (right >= 0.5)
                assert label["side_score"] == pytest.approx(max(right, 1 - right), abs=1e-3)
    finally:
        with torch.no_grad():
            bias.copy_(saved)


def test_given_and_unknown_sides_in_one_batch(lively, photos):
    crop_px = lively.checkpoint.info.network.crop_px
    given = [0.1, None, 0.9, None, 0.2, None]
    cut = [
        crop_photo(photos[k % 4], photos[k % 4].shape[1], 100, crop_px, right_score=score)
        for k, score in enumerate(given)
    ]
    before = Crops.stack(cut).pixels.copy()
    together = lively.predict_crops(Crops.stack(cut), samples=300)
    assert list(together["is_right"][[0, 2, 4]]) == [False, True, False]
    np.testing.assert_allclose(together["side_score"][[0, 2, 4]], [0.9, 0.9, 0.8])
    np.testing.assert_array_equal(Crops.stack(cut).pixels, before)  # what is mirrored is a copy
    for k, crop in enumerate(cut):
        alone = lively.predict_crops(crop, "right" if together["is_right"][k] else "left")
        np.testing.assert_allclose(together["vertices_mm"][k], alone["vertices_mm"][0], atol=1e-2)
        np.testing.assert_allclose(together["joints2d_px"][k], alone["joints2d_px"][0], atol=1e-2)
        np.testing.assert_array_equal(together["vertex_rgb"][k] // 4, alone["vertex_rgb"][0] // 4)
        # Meshes drawn from q lie about its mean, on the side that was found.
        drawn = together["vertices_samples_mm"][k].mean(0) - alone["vertices_mm"][0]
        assert np.abs(drawn / alone["vertices_std_mm"][0]).mean() < 0.25
        sides = chirality(together["joints3d_samples_mm"][k])
        assert (np.sign(sides) == (1 if together["is_right"][k] else -1)).mean() > 0.9


def test_a_batch_is_its_photos_one_by_one(lively, photos):
    together = lively.predict(photos)
    for photo, label in zip(photos, together, strict=True):
        alone = lively.predict([photo])[0]
        np.testing.assert_allclose(alone["vertices_mm"], label["vertices_mm"], atol=1e-2)
        np.testing.assert_allclose(alone["joints2d_std_px"], label["joints2d_std_px"], rtol=1e-3)


def test_a_box_is_cut_out_with_padding(lively):
    rng = np.random.default_rng(1)
    scene = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((640, 480)))
    label = lively.predict([scene], boxes_xyxy=[[300, 100, 400, 180]])[0]
    np.testing.assert_allclose(label["crop_xyxy"], [285, 75, 415, 205])
    crop = lively.predict([scene[75:205, 285:415]])[0]
    # The same pixels beside the optical axis: the same hand, turned by the ray through the crop's centre (350, 140).
    ray = np.array([350 - 320, 140 - 240, label["camera"]["focal_px"]])
    across, along = np.array([-ray[1], ray[0], 0]), np.linalg.norm(ray)
    turn = Rotation.from_rotvec(
        across / np.linalg.norm(across) * np.arcsin(np.linalg.norm(across) / along)
    ).as_matrix()
    np.testing.assert_allclose(label["joints3d_mm"], crop["joints3d_mm"] @ turn.T, atol=0.5)
    np.testing.assert_allclose(label["joints2d_px"], crop["joints2d_px"] + [285, 75], atol=0.5)


def test_calibration_scales_what_is_reported_and_nothing_else(lively, photos):
    info = lively.checkpoint.info
    law = Calibration(
        vertices=AxisLaws(PowerLaw(2.0, 1.0), PowerLaw(4.0, 1.0)),
        joints3d=AxisLaws(PowerLaw(3.0, 0.5), PowerLaw(5.0, 0.5)),
        joints2d=PowerLaw(1.5, 1.0),
        fitted_on="x",
    )
    calibrated = Predictor(
        dataclasses.replace(lively.checkpoint, info=dataclasses.replace(info, calibration=law)),
        torch.device("cpu"),
    )
    before, after = lively.predict(photos[:1])[0], calibrated.predict(photos[:1])[0]
    np.testing.assert_allclose(after["vertices_std_mm"], [2, 2, 4] * before["vertices_std_mm"], rtol=1e-5)
    np.testing.assert_allclose(
        after["joints3d_std_mm"][1:], [3, 3, 5] * before["joints3d_std_mm"][1:] ** 0.5, rtol=1e-5
    )
    np.testing.assert_allclose(after["joints2d_std_px"], 1.5 * before["joints2d_std_px"], rtol=1e-5)
    np.testing.assert_array_equal(after["vertices_mm"], before["vertices_mm"])
    per_joint = np.linalg.norm(after["joints3d_std_mm"][1:], axis=1)
    np.testing.assert_allclose(
        [after["joint_std_mm"], after["max_joint_std_mm"]], [per_joint.mean(), per_joint.max()]
    )


def test_wrong_photos_are_refused_by_name(predictor, tmp_path):
    with pytest.raises(UserError, match="uint8 RGB, got float64"):
        predictor.predict([np.zeros((10, 10, 3))])
    with pytest.raises(PhotoError, match="no such file"):
        predictor.predict([tmp_path / "none.jpg"])
    assert predictor.predict([]) == []


class Failing(torch.nn.Module):
    """A network whose `extract` may fail."""

    def __init__(self, network) -> None:
        super().__init__()
        self.network = network
        self.R, self.is_right, self.hands = network.R, network.is_right, network.hands


class SmallMemory(Failing):
    """A network on a device that holds so many photos at once."""

    def __init__(self, network, most: int) -> None:
        super().__init__(network)
        self.most, self.seen = most, []

    def extract(self, images):
        self.seen.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.network.extract(images)


def test_a_batch_that_does_not_fit_is_halved_and_no_row_is_lost(lively, photos):
    crop_px = lively.checkpoint.info.network.crop_px
    cut = Crops.stack(
        [crop_photo(photos[k % 4], 120, 100, crop_px, [k, k, k + 50, k + 40]) for k in range(50)]
    )
    whole = lively.predict_crops(cut, "right")
    small = Predictor(lively.checkpoint, torch.device("cpu"), batch_size=32)
    small.network = SmallMemory(lively.network, most=5)
    halved = small.predict_crops(cut, "right")
    assert small.batch_size == 4 and small.network.seen[:4] == [32, 16, 8, 4]
    assert len(halved["is_right"]) == 50
    np.testing.assert_allclose(halved["vertices_mm"], whole["vertices_mm"], atol=1e-2)
    small.network.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        small.predict_crops(cut, "right")


def test_the_batch_size_that_is_found_fits(lively, monkeypatch):
    found = Predictor(lively.checkpoint, torch.device("cpu"))
    found.network = SmallMemory(lively.network, most=100)
    # Twice the photos in the same time, as on a GPU that is not full.
    monkeypatch.setattr(found, "_seconds_per_batch", lambda: found.warm_up() or 1.0)
    found.find_batch_size()
    assert found.batch_size == 64
    # No faster: the smaller one.
    monkeypatch.setattr(found, "_seconds_per_batch", lambda: float(found.batch_size))
    found.find_batch_size()
    assert found.batch_size == 32


class Picky(Failing):
    """A network that fails on a batch with a photo of a certain grey in it."""

    def __init__(self, network, bad: float) -> None:
        super().__init__(network)
        self.bad = bad

    def extract(self, images):
        if ((images - self.bad).abs() < 1e-3).flatten(1).all(1).any():
            raise ValueError("singular matrix")
        return self.network.extract(images)


def test_one_photo_that_the_network_fails_on_takes_no_other_along(lively):
    crop_px = lively.checkpoint.info.network.crop_px
    greys = [np.full((40, 40, 3), 10 * k, np.uint8) for k in range(8)]
    shard = Shard(
        [{"image_id": str(k), "hand_index": 0} for k in range(9)],
        [0, 1, 2, 4, 5, 6, 7, 8],  # row 3 holds no hand
        Crops.stack([crop_photo(grey, 40, 40, crop_px) for grey in greys]),
    )
    shard.rows[3]["status"] = "unreadable"
    picky = Predictor(lively.checkpoint, torch.device("cpu"))
    picky.network = Picky(lively.network, 50 / 255)
    found = predict_shard(picky, shard, "right")
    assert [row["status"] for row in found.rows] == ["ok"] * 3 + ["unreadable"] + ["ok"] * 2 + ["failed"] + [
        "ok"
    ] * 2
    assert found.rows[6]["error"] == "ValueError: singular matrix" and found.hand_rows == [
        0,
        1,
        2,
        4,
        5,
        7,
        8,
    ]
    whole = lively.predict_crops(shard.crops, "right")
    np.testing.assert_allclose(found.hands["vertices_mm"][5], whole["vertices_mm"][6], atol=1e-2)
    assert found.hands["camera"]["scale"].shape == (7,)
    # Where it fails on all of them the model itself is broken, and a new process is asked.
    picky.network = SmallMemory(lively.network, most=0)
    with pytest.raises(ModelBrokenError):
        predict_shard(picky, shard, "right")


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


@pytest.mark.slow
def test_a_detectors_joints_lead_the_second_look_where_the_first_look_fails(monkeypatch):
    """On drawn hands, also mirrored: the joints' truth is within reach of the second look alone."""
    predictor = annotator.load("default", device="cpu")
    hands = SyntheticHands(open_hand(), 160, seed=3).batch(torch.arange(6))
    drawn = hands.image.permute(0, 2, 3, 1).numpy()
    truth_px = (hands.joints2d.numpy() + 1) * 80
    look = predictor.network.first_look

    def failing(images):
        """Find no hand, and joints in a corner."""
        first = look(images)
        assert first.joints2d is not None
        return dataclasses.replace(first, joints2d=first.joints2d * 0.1 + 0.8)

    monkeypatch.setattr(predictor.network, "first_look", failing)
    monkeypatch.setattr(predictor.network.first, "is_hand", lambda features: torch.zeros(len(features.g)))

    def off_px(photos, joints_px, side, found):
        places = joints_px if found else [None] * len(photos)
        crops = [
            crop_photo(photo, 160, 160, predictor.checkpoint.cut_px, (16, 16, 144, 144), None,
                       predictor.checkpoint.cut_margin, joints2d_px=joints)
            for photo, joints in zip(photos, places, strict=True)
        ]  # fmt: skip
        labels = predictor.predict_crops(Crops.stack(crops), side)
        return np.linalg.norm(labels["joints2d_px"] - joints_px, axis=-1).mean(1)

    assert off_px(drawn, truth_px, "right", found=False).mean() > 12
    assert np.median(off_px(drawn, truth_px, "right", found=True)) < 6
    mirrored, mirrored_px = drawn[:, :, ::-1], np.stack([160 - truth_px[..., 0], truth_px[..., 1]], -1)
    assert np.median(off_px(mirrored, mirrored_px, "left", found=True)) < 6
