from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.support.example_files import stick_photo
from trainer.augment import prepare
from trainer.batch import Batch
from trainer.config import AugmentConfig
from trainer.convert.cut_out import cut_out, outlined
from trainer.keyed_random import keys
from trainer.synth.backdrops import Backdrops


def before_a_wall(skin: tuple[int, int, int], seed: int = 0):
    """A photo (80, 100, 3) of a bar and a disc of one colour before a wall that darkens to its corners, its mask, and
    joints on it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:80, :100]
    hand = (np.hypot(y - 45, x - 50) < 18) | ((np.abs(x - 50) < 5) & (y > 8) & (y < 60))
    wall = 225 - 60 * np.hypot((y - 40) / 80, (x - 50) / 100)[..., None] + np.array([0, 0, 6])
    pixels = np.where(hand[..., None], np.array(skin), wall) + rng.normal(0, 3, (80, 100, 3))
    positions = np.argwhere(hand)[:: hand.sum() // 21][:21, ::-1] + 0.5
    return pixels.clip(0, 255).astype(np.uint8), hand, positions


@pytest.mark.parametrize(
    "skin", [(205, 160, 130), (120, 80, 60), (60, 42, 35)], ids=["light", "brown", "dark"]
)
def test_a_hand_is_separated_from_a_wall(skin):
    pixels, hand, joints = before_a_wall(skin)
    found = cut_out(pixels, joints)
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 255}
    assert not found[~hand].any()  # no pixel of the wall
    assert (found[hand] > 0).mean() > 0.85  # the outermost pixels are excluded


def test_a_large_photo_gets_a_mask_of_its_own_size():
    pixels, hand, joints = before_a_wall((205, 160, 130))
    large = np.repeat(np.repeat(pixels, 8, 0), 8, 1)
    found = cut_out(large, joints * 8)
    assert found.shape == (640, 800) and (found[::8, ::8][hand] > 0).mean() > 0.8
    wall = np.repeat(np.repeat(~hand, 8, 0), 8, 1)
    assert (found[wall] > 0).mean() < 0.01


def test_a_failed_segmentation_has_no_mask():
    pixels, _, joints = before_a_wall((205, 205, 212))
    assert cut_out(pixels, joints) is None
    pixels, _, joints = before_a_wall((205, 160, 130))
    assert cut_out(pixels, np.full((21, 2), 3.0)) is None  # joints on the wall
    beyond = joints + 1000
    assert cut_out(pixels, beyond) is None


def test_examples_without_a_mask_get_one():
    pixels, hand, joints = before_a_wall((205, 160, 130))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    row = {"image": file.getvalue(), "joints2d_px": joints}
    mask = np.asarray(Image.open(io.BytesIO(outlined(row)["hand_mask"])))
    assert mask.shape == hand.shape and mask[45, 50] == 255 and mask[2, 2] == 0
    assert outlined("a reason") == "a reason"
    assert outlined(row | {"hand_mask": b"known"})["hand_mask"] == b"known"
    assert "hand_mask" not in outlined(row | {"joints2d_px": None})
    unknown = np.where(np.arange(21)[:, None] == 3, np.nan, joints)
    assert "hand_mask" not in outlined(row | {"joints2d_px": unknown})


def test_real_hands_are_cut_out_from_a_wall(sign_digits):
    table = Path(__file__).parents[2] / "data" / "held_out_detections.parquet"
    rows = pq.read_table(table, filters=[("collection", "=", "sign-digits")]).to_pylist()[:20]
    masks = [
        cut_out(
            np.asarray(Image.open(sign_digits / row["image_id"]).convert("RGB")),
            np.array(row["joints2d_px"]),
        )
        for row in rows
    ]
    assert sum(mask is not None for mask in masks) >= 18
    shares = [float((mask > 0).mean()) for mask in masks if mask is not None]
    assert min(shares) > 0.08 and max(shares) < 0.5


def photo_batch(count: int, size_px: int = 48) -> Batch:
    batch = Batch.empty(count, size_px, 4)
    image = np.asarray(Image.open(io.BytesIO(stick_photo(np.full((21, 2), 20.0), size_px, size_px))))
    batch.image[:] = torch.from_numpy(image.copy()).permute(2, 0, 1)
    batch.hand_mask[:] = 0
    batch.hand_mask[..., 12:36, 12:36] = 255
    batch.has_hand_mask[:] = True
    return replace(batch, key=keys(0, 0, torch.arange(count)))


def test_backdrops_change_only_the_background_and_depend_only_on_the_key():
    batch, backdrops = photo_batch(40), Backdrops(0, torch.device("cpu"))
    images = batch.image.float() / 255
    changed = backdrops.behind(images, batch, 0.5)
    hand = batch.hand_mask > 0
    assert torch.equal(changed[hand.expand_as(changed)], images[hand.expand_as(images)])
    which = ((changed != images).flatten(1).float().mean(1) > 0.3).nonzero().squeeze(1)
    assert 10 < len(which) < 30 and changed.min() >= 0 and changed.max() <= 1
    torch.testing.assert_close(
        backdrops.behind(images[7:9], batch[7:9], 0.5), changed[7:9], atol=1e-5, rtol=0
    )
    unknown = replace(batch, has_hand_mask=torch.zeros(40, dtype=torch.bool))
    assert torch.equal(backdrops.behind(images, unknown, 1.0), images)


def test_photos_are_prepared_with_backdrops_and_drawn_hands_without():
    batch, backdrops = photo_batch(8, 64), Backdrops(0, torch.device("cpu"))
    still = AugmentConfig(rotation_deg=0, zoom=1, shift=0, colour=0, blur=0, noise=0, backdrop=1, erase=0)
    with_it, _ = prepare(batch, 48, 64 / 48, still, backdrops)
    without, _ = prepare(batch, 48, 64 / 48, still)
    assert (with_it - without).abs().mean() > 0.05
    drawn, _ = prepare(batch, 64, 1, still, backdrops)
    torch.testing.assert_close(drawn, batch.image / 255)
