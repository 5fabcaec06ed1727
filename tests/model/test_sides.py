"""The side that the network sees, and the mirrored prediction of left hands."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from annotator.hand.anatomy import chirality
from annotator.model.sides import SURELY_RIGHT
from annotator.photos.crops import Crops, crop_photo
from tests.support.noise_photos import noise_photos


@pytest.fixture(scope="module")
def photos():
    return noise_photos()


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
