from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from trainer.augment import move, prepare
from trainer.batch import Batch
from trainer.config import AugmentConfig
from trainer.keyed_random import keys

STILL = AugmentConfig(rotation_deg=0, zoom=1, shift=0, colour=0, blur=0, noise=0, erase=0)


def dotted(count: int = 6, size_px: int = 90) -> Batch:
    """Photos with a bright dot at joint 8 of each, and random 3D."""
    rng = np.random.default_rng(0)
    batch = Batch.empty(count, size_px, 7)
    batch.key = keys(3, torch.arange(count))
    batch.joints2d = torch.from_numpy(rng.uniform(-0.4, 0.4, (count, 21, 2))).float()
    batch.has_joints2d[:] = True
    batch.joints3d_mm = torch.from_numpy(rng.normal(0, 50, (count, 21, 3))).float()
    batch.vertices_mm = torch.from_numpy(rng.normal(0, 50, (count, 7, 3))).float()
    at = (torch.arange(size_px) * 2 + 1) / size_px - 1
    for i in range(count):
        x, y = batch.joints2d[i, 8]
        dot = torch.exp(-((at[None] - x) ** 2 + (at[:, None] - y) ** 2) / (2 * 0.04**2))
        batch.image[i] = (dot * 255).round().byte()
    batch.hand_mask[:] = (batch.image.float() > 128)[:, :1].byte() * 255
    return batch


def centre_of(weights: torch.Tensor) -> np.ndarray:
    """The mean position (B, 2) of what is bright in (B, H, W), crop coordinates."""
    size = weights.shape[-1]
    at = (torch.arange(size) * 2 + 1) / size - 1
    total = weights.sum((1, 2))
    return torch.stack(
        [(weights.sum(1) * at).sum(1) / total, (weights.sum(2) * at).sum(1) / total], 1
    ).numpy()


def test_joints_move_with_the_pixels():
    batch = dotted()
    config = AugmentConfig(rotation_deg=80, zoom=1.3, shift=0.15, colour=0, blur=0, noise=0, erase=0)
    images, moved = prepare(batch, 64, 90 / 64, config)
    # The area outside the wide photo is grey: compare only the dot.
    bright = (images.mean(1) - 0.5).clamp(min=0)
    inside = moved.joints2d[:, 8].abs().amax(1).numpy() < 0.8
    assert inside.sum() >= 4
    np.testing.assert_allclose(centre_of(bright)[inside], moved.joints2d[inside, 8], atol=0.01)
    mask = moved.hand_mask[:, 0].float()
    np.testing.assert_allclose(centre_of(mask)[inside], moved.joints2d[inside, 8], atol=0.02)
    assert not np.allclose(moved.joints2d, batch.joints2d, atol=0.05)


def test_3d_rotates_with_the_photo_and_keeps_its_size():
    batch = dotted()
    angle = torch.linspace(-1, 1, len(batch))
    zoom, shift = torch.full_like(angle, 0.8), torch.full((len(batch), 2), 0.1)
    _, moved = move(batch.image.float(), batch, 64, angle, zoom, shift)
    # A camera with scale s for the old joints has s / zoom for the new ones, rotated by the same angle.
    old = batch.joints3d_mm[:, :, :2] / 300
    batch.joints2d = old + 0.05
    _, again = move(batch.image.float(), batch, 64, angle, zoom, shift)
    offset = again.joints2d - moved.joints3d_mm[:, :, :2] / 300 / 0.8
    assert torch.allclose(offset, offset[:, :1].expand_as(offset), atol=1e-5)
    assert torch.allclose(moved.joints3d_mm[..., 2], batch.joints3d_mm[..., 2])
    for name in ("joints3d_mm", "vertices_mm"):
        before, after = getattr(batch, name), getattr(moved, name)
        assert torch.allclose(torch.cdist(before, before), torch.cdist(after, after), atol=1e-2)


def test_a_known_camera_rotates_with_the_crop():
    """Against a pinhole: the moved crop is one before a camera that is rolled, and its 3D is in that crop's axes."""
    rng = np.random.default_rng(1)
    batch = dotted()
    count = len(batch)
    angle, zoom, shift = (
        rng.uniform(-1.4, 1.4, count),
        rng.uniform(0.6, 0.9, count),
        rng.uniform(-0.2, 0.2, (count, 2)),
    )
    ray, tan = rng.uniform(-0.5, 0.5, (count, 2)), rng.uniform(0.1, 0.4, count)
    points = rng.normal(0, 40, (count, 21, 3)) + np.array([0, 0, 600])
    points[..., :2] += 600 * ray[:, None]
    vertices = points[:, :7] * 0.9

    def in_crop(points, ray):
        across = np.stack([-ray[:, 1], ray[:, 0], np.zeros(count)], 1)
        length = np.linalg.norm(ray, axis=1, keepdims=True)
        rotation = Rotation.from_rotvec(across / length * np.arctan(length)).inv().as_matrix()
        return np.einsum("bij,bnj->bni", rotation, points)

    def seen(points, ray, tan):
        return (points[..., :2] / points[..., 2:] - ray[:, None]) / tan[:, None, None]

    def tensor(values):
        return torch.from_numpy(values).float()

    batch.joints2d, batch.joints3d_mm = tensor(seen(points, ray, tan)), tensor(in_crop(points, ray))
    batch.vertices_mm, batch.ray, batch.half_side_tan = (
        tensor(in_crop(vertices, ray)),
        tensor(ray),
        tensor(tan),
    )
    _, moved = move(batch.image.float(), batch, 64, tensor(angle), tensor(zoom), tensor(shift))
    roll = Rotation.from_euler("z", -angle[:, None]).as_matrix()
    rolled, rolled_vertices = (np.einsum("bij,bnj->bni", roll, values) for values in (points, vertices))
    new_ray, new_tan = moved.ray.double().numpy(), moved.half_side_tan.double().numpy()
    np.testing.assert_allclose(seen(rolled, new_ray, new_tan), moved.joints2d, atol=1e-4)
    np.testing.assert_allclose(in_crop(rolled, new_ray), moved.joints3d_mm, atol=1e-2)
    np.testing.assert_allclose(in_crop(rolled_vertices, new_ray), moved.vertices_mm, atol=1e-2)


def test_unknown_joints_stay_zero():
    batch = dotted()
    batch.has_joints2d[:, 3] = False
    batch.joints2d[:, 3] = 0
    _, moved = prepare(batch, 64, 90 / 64, AugmentConfig())
    assert (moved.joints2d[:, 3] == 0).all()


def test_an_example_changes_the_same_way_in_any_batch():
    batch = dotted()
    images, moved = prepare(batch, 64, 90 / 64, AugmentConfig())
    some_images, some = prepare(batch[[4, 1]], 64, 90 / 64, AugmentConfig())
    assert torch.allclose(images[[4, 1]], some_images, atol=1e-6)
    assert torch.allclose(moved.joints2d[[4, 1]], some.joints2d, atol=1e-6)


def test_zero_augmentation_changes_nothing():
    batch = dotted(size_px=64)
    images, moved = prepare(batch, 64, 1.0, STILL)
    assert torch.allclose(images, batch.image / 255, atol=1e-5)
    assert torch.equal(moved.joints2d, batch.joints2d)


def test_patches_remove_the_hand_from_the_mask():
    batch = dotted(64, 90)
    batch.hand_mask[:] = 255
    plain, _ = prepare(batch, 64, 90 / 64, STILL)
    images, moved = prepare(batch, 64, 90 / 64, replace(STILL, erase=0.5))
    changed = (images - plain).abs().amax(1) > 1e-3
    covered = moved.hand_mask[:, 0] == 0
    assert 0.3 < covered.any(2).any(1).float().mean() < 0.7
    assert (changed & ~covered).sum() == 0


@pytest.mark.parametrize("degrees", [0.0, 30.0, -75.0])
def test_a_crop_is_a_window_of_the_photo(degrees):
    """A ramp whose value is the x coordinate becomes a ramp along the rotated axis."""
    size = 120
    at = (torch.arange(size) * 2 + 1) / size - 1
    image = ((at + 1) / 2)[None, None, None].expand(1, 3, size, size).contiguous()
    angle = math.radians(degrees)
    batch = Batch.empty(1, size, 1)
    out, _ = move(image, batch, 40, torch.tensor([angle]), torch.tensor([0.5]), torch.tensor([[0.1, 0.0]]))
    q = (torch.arange(40) * 2 + 1) / 40 - 1
    expected = 0.5 * (math.cos(angle) * q[None, :] - math.sin(angle) * q[:, None]) + 0.1
    assert torch.allclose(out[0, 0] * 2 - 1, expected, atol=1e-3)


def test_crops_are_cut_upright_and_tight_around_the_joints_first():
    """Whatever way a hand is rotated in its photo, the middle knuckle is above the wrist and the box has one size."""
    config = AugmentConfig(upright=True, rotation_deg=0, zoom=1, shift=0, colour=0, blur=0, noise=0, erase=0)
    generator = torch.Generator().manual_seed(2)
    batch = Batch.empty(6, 96, 800)
    angle = torch.linspace(0, 5, 6)
    rotation = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], 1
    )
    joints = (torch.rand(6, 21, 2, generator=generator) - 0.5) @ rotation.mT * 0.6 + 0.1
    depth = torch.rand(6, 21, 1, generator=generator)
    batch = replace(
        batch,
        joints2d=joints,
        has_joints2d=torch.ones(6, 21, dtype=torch.bool),
        joints3d_mm=100 * torch.cat([joints - joints[:, :1], depth], -1),
    )
    _, moved = prepare(batch, 64, 1.5, config)
    up = moved.joints2d[:, 9] - moved.joints2d[:, 0]
    torch.testing.assert_close(up[:, 0], torch.zeros(6), atol=1e-5, rtol=0)
    assert (up[:, 1] < 0).all()
    low, high = moved.joints2d.amin(1), moved.joints2d.amax(1)
    torch.testing.assert_close((high - low).amax(1), torch.full((6,), 2 / 1.35), atol=1e-5, rtol=0)
    torch.testing.assert_close(low + high, torch.zeros(6, 2), atol=1e-5, rtol=0)
    # 3D rotates with the pixels: x and y match 2D at the crop's scale (all rays are the axis here).
    scale = (moved.joints2d[:, 9] - moved.joints2d[:, 0]).norm(dim=1) / (joints[:, 9] - joints[:, 0]).norm(
        dim=1
    )
    seen = (moved.joints2d - moved.joints2d[:, :1]) / scale[:, None, None]
    flat = replace(
        batch, ray=torch.zeros_like(batch.ray), half_side_tan=torch.zeros_like(batch.half_side_tan)
    )
    _, moved = prepare(flat, 64, 1.5, config)
    torch.testing.assert_close(moved.joints3d_mm[..., :2] / 100, seen, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved.joints3d_mm[..., 2], flat.joints3d_mm[..., 2])
