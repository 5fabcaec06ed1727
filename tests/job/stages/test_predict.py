"""Errors of the network in the predict stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from annotator.job.shard import Shard
from annotator.job.stages import predict_shard
from annotator.job.stages.predict import ModelBrokenError
from annotator.photos.crops import Crops, crop_photo
from annotator.predictor import Predictor
from tests.support.failing_network import FailingNetwork


class Picky(FailingNetwork):
    """A network that fails on a batch with a photo of a certain grey in it."""

    def __init__(self, network, bad: float) -> None:
        super().__init__(network)
        self.bad = bad

    def extract(self, images):
        if ((images - self.bad).abs() < 1e-3).flatten(1).all(1).any():
            raise ValueError("singular matrix")
        return self.network.extract(images)


class Broken(FailingNetwork):
    """A network that always fails, as after an error of a GPU."""

    def extract(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


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
    # If all of them fail, the model itself is broken, and only a new process can help.
    picky.network = Broken(lively.network)
    with pytest.raises(ModelBrokenError):
        predict_shard(picky, shard, "right")
