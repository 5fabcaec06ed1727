"""Labels of single photos: frames, boxes, calibration, batches."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

import annotator
from annotator.hand.anatomy import chirality
from annotator.hand.open_hand import open_hand
from annotator.photos.crops import Crops, crop_photo
from annotator.predictor import Predictor
from annotator.quality.calibration import AxisLaws, Calibration, PowerLaw
from tests.support.failing_network import FailingNetwork
from tests.support.noise_photos import noise_photos
from trainer.synth import SyntheticHands


@pytest.fixture(scope="module")
def photos():
    return noise_photos()


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
    # The same pixels beside the optical axis: the same hand, rotated by the ray through the crop's centre (350, 140).
    ray = np.array([350 - 320, 140 - 240, label["camera"]["focal_px"]])
    across, along = np.array([-ray[1], ray[0], 0]), np.linalg.norm(ray)
    rotation = Rotation.from_rotvec(
        across / np.linalg.norm(across) * np.arcsin(np.linalg.norm(across) / along)
    ).as_matrix()
    np.testing.assert_allclose(label["joints3d_mm"], crop["joints3d_mm"] @ rotation.T, atol=0.5)
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


class SmallMemory(FailingNetwork):
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


@pytest.mark.slow
def test_a_detectors_joints_lead_the_second_look_where_the_first_look_fails(monkeypatch):
    """On synthetic hands, also mirrored: the joints' truth is within reach of the second look alone."""
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
        given = joints_px if found else [None] * len(photos)
        crops = [
            crop_photo(photo, 160, 160, predictor.checkpoint.cut_px, (16, 16, 144, 144), None,
                       predictor.checkpoint.cut_margin, joints2d_px=joints)
            for photo, joints in zip(photos, given, strict=True)
        ]  # fmt: skip
        labels = predictor.predict_crops(Crops.stack(crops), side)
        return np.linalg.norm(labels["joints2d_px"] - joints_px, axis=-1).mean(1)

    assert off_px(drawn, truth_px, "right", found=False).mean() > 12
    assert np.median(off_px(drawn, truth_px, "right", found=True)) < 6
    mirrored, mirrored_px = drawn[:, :, ::-1], np.stack([160 - truth_px[..., 0], truth_px[..., 1]], -1)
    assert np.median(off_px(mirrored, mirrored_px, "left", found=True)) < 6
