"""Pixels of crops lie where the frames place them, and are the same from `cut` and `resample`."""

import numpy as np
import pytest
import torch
from PIL import Image

from annotator.coordinates import CropFrame, square_around
from annotator.photos.cut import OUTSIDE_RGB, cut, resample


def test_a_blob_in_the_photo_lands_where_the_map_says():
    """Pixel centres at half integers: found by the centre of mass of a blob in the crop."""
    ys, xs = np.mgrid[0:120, 0:160] + 0.5
    for x, y in [(80.0, 60.0), (47.3, 88.1), (100.5, 30.25)]:
        blob = 255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 5.0**2))
        pixels = np.repeat(blob[..., None], 3, 2).astype(np.uint8)
        frame = CropFrame(np.array([75.5, 61.25]), np.float64(55.0), np.bool_(False))
        crop = cut(pixels, frame, 64, photo_width=160)[..., 0].astype(float)
        grid = (np.arange(64) + 0.5) / 64 * 2 - 1
        found = np.array([(crop.sum(0) * grid).sum(), (crop.sum(1) * grid).sum()]) / crop.sum()
        np.testing.assert_allclose(found, frame.crop_from_photo(np.array([[x, y]]))[0], atol=0.01)


def test_a_scaled_down_photo_gives_the_same_crop():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (60, 80, 3), np.uint8)
    full = small.repeat(4, 0).repeat(4, 1)
    frame = CropFrame(np.array([160.0, 120.0]), np.float64(100.0), np.bool_(False))
    a = cut(full, frame, 32, photo_width=320).astype(int)
    b = cut(small, frame, 32, photo_width=320).astype(int)
    assert np.abs(a - b).mean() < 12 and np.abs(a - b).mean() < np.abs(a - a.mean()).mean() / 4


def test_beyond_the_photo_is_the_mean_colour():
    pixels = np.full((40, 40, 3), 255, np.uint8)
    frame = square_around([0, 0, 40, 40], padding=2.0)
    crop = cut(pixels, frame, 64, photo_width=40)
    assert tuple(crop[2, 2]) == OUTSIDE_RGB
    assert tuple(crop[32, 32]) == (255, 255, 255)


@pytest.mark.parametrize("shape", [(1, 1), (20, 30_000), (30_000, 20), (3, 2)])
def test_extreme_shapes_are_cut_in_bounded_memory(shape):
    pixels = np.full((*shape, 3), 200, np.uint8)
    frame = square_around([0, 0, shape[1], shape[0]], 1.0)
    assert cut(pixels, frame, 128, photo_width=shape[1]).shape == (128, 128, 3)


def _looks(count, seed=0):
    """Squares in a wider image, -1 to 1, some of which are mirrored: the arguments of `resample`."""
    rng = np.random.default_rng(seed)
    looks = rng.uniform(-0.15, 0.15, (count, 2)), rng.uniform(0.5, 0.8, count), rng.uniform(-3, 3, count)
    return [torch.from_numpy(values).float() for values in looks] + [torch.arange(count) % 2 == 1]


def test_a_resampled_crop_shows_a_blob_where_the_map_says():
    side, size_px = 150, 64
    centre, half, rotation, mirrored = _looks(8)
    at = (torch.arange(side) * 2 + 1) / side - 1
    positions = torch.from_numpy(np.random.default_rng(1).uniform(-0.2, 0.2, (8, 2))).float()
    aside = (at[None, None] - positions[:, :1, None]) ** 2 + (at[None, :, None] - positions[:, 1:, None]) ** 2
    images = torch.exp(-aside / (2 * 0.06**2))[:, None].expand(-1, 3, -1, -1)
    crops = resample(images, centre, half, rotation, mirrored, size_px, (0, 0, 0))[:, 0].numpy()
    grid = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    found = (
        np.stack([(crops.sum(1) * grid).sum(1), (crops.sum(2) * grid).sum(1)], 1) / crops.sum((1, 2))[:, None]
    )
    for k in range(8):
        z = (complex(*positions[k]) - complex(*centre[k])) / float(half[k]) * np.exp(-1j * float(rotation[k]))
        np.testing.assert_allclose(found[k], [-z.real if mirrored[k] else z.real, z.imag], atol=0.01)


def test_an_upright_square_is_resampled_as_it_is_cut():
    photo = np.random.default_rng(2).integers(0, 256, (12, 12, 3), np.uint8)
    photo = np.asarray(Image.fromarray(photo).resize((90, 90), Image.Resampling.BICUBIC))
    frame = CropFrame(np.array([50.0, 38]), np.float64(60), np.bool_(False))  # partly beyond the photo
    expected = cut(photo, frame, 96, 90) / 255
    images = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255
    centre, half = torch.tensor([[50 / 45 - 1, 38 / 45 - 1]]), torch.tensor([60 / 45])
    found = resample(images, centre, half, torch.zeros(1), torch.tensor([False]), 96)
    away = np.abs(found[0].permute(1, 2, 0).numpy() - expected)
    assert away.mean() < 0.01
    assert tuple((found[0, :, -1, -1] * 255).round().int().tolist()) == OUTSIDE_RGB


@pytest.mark.parametrize("shrink", [1.0, 2.0, 3.0, 5.0])
def test_a_fine_pattern_does_not_alias_when_it_shrinks(shrink):
    """Lines of one pixel, rotated: where they are too fine to be shown they are grey, without moire."""
    side, size_px = 320, 64
    lines = (torch.arange(side) % 2).float()[None, None, None].expand(1, 3, side, side)
    half = torch.tensor([shrink * size_px / side])
    rotation, upright = torch.tensor([0.3]), torch.tensor([False])
    crop = resample(lines, torch.zeros(1, 2), half, rotation, upright, size_px)[0, 0, 10:-10, 10:-10]
    if shrink == 1:
        assert crop.std() > 0.2
    elif shrink < 5:
        assert crop.std() < 0.1 and abs(crop.mean() - 0.5) < 0.01
    else:  # the square is the image itself: only its middle lies inside
        assert crop[16:-16, 16:-16].std() < 0.1
