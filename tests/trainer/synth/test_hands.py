from __future__ import annotations

import numpy as np
import pytest
import roma
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from annotator.hand import anatomy, load_hand, plausible_poses
from annotator.hand.layer import HandLayer
from annotator.render import nearest_faces
from trainer.batch import Batch
from trainer.keyed_random import Draws, keys
from trainer.synth import DrawnPhotos, SyntheticHands
from trainer.synth.camera import jpeg
from trainer.synth.figure import OBJECT_A
from trainer.synth.poses import Poses
from trainer.synth.skin import CHANNELS, TEXELS, skin_map

SIZE_PX, COUNT = 96, 160


@pytest.fixture(scope="module")
def hands() -> SyntheticHands:
    return SyntheticHands(load_hand("open"), SIZE_PX, seed=5)


@pytest.fixture(scope="module")
def photos(hands: SyntheticHands) -> DrawnPhotos:
    return hands.photos(torch.arange(COUNT))


@pytest.fixture(scope="module")
def unhidden_mask(hands: SyntheticHands, photos: DrawnPhotos) -> Tensor:
    """Return the mask (B, S, S) bool of the hand in front of its own arm, away from objects."""
    scene, figure = photos.scene, hands.figure
    moved = (torch.cat([scene.vertices_mm, scene.others_mm], 1) + scene.cam_t_mm[:, None]).double()
    aside = moved[..., :2] / moved[..., 2:] - scene.ray[:, None]
    xy = scene.focal[:, None, None].double() * aside
    points = torch.cat([xy, -1000 / moved[..., 2:]], -1).float()
    face = nearest_faces(points, figure.faces[figure.material < OBJECT_A], SIZE_PX)
    return (face >= 0) & (face < figure.face_count)


def assert_same(one: Batch, other: Batch) -> None:
    """Check that values are equal up to rounding."""
    assert torch.equal(one.key, other.key)
    for name in ("joints2d", "joints3d_mm", "vertices_mm"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=2e-3, rtol=1e-5)
    grey_levels = (one.image.int() - other.image.int()).abs()
    assert (grey_levels > 1).float().mean() < 1e-3
    assert (one.hand_mask != other.hand_mask).float().mean() < 1e-3


def test_examples_do_not_depend_on_their_batch(hands: SyntheticHands) -> None:
    together = hands.batch(torch.tensor([7, 1, 123456789012, 3]))
    for row, index in enumerate((7, 1, 123456789012, 3)):
        assert_same(hands.batch(torch.tensor([index])), together[row : row + 1])


def test_the_same_share_of_rooms_is_empty_in_any_batch(hands: SyntheticHands) -> None:
    together = hands.batch(torch.arange(24), empty=0.4)
    assert 4 < int(together.has_hand.sum()) < 20
    for row in (0, 7, 23):
        alone = hands.batch(torch.tensor([row]), empty=0.4)
        assert alone.has_hand[0] == together.has_hand[row]
        assert_same(alone, together[row : row + 1])
    empty = together[~together.has_hand]
    for name in ("has_joints2d", "joints2d", "has_joints3d", "joints3d_mm", "has_vertices", "hand_mask"):
        assert not getattr(empty, name).any(), name
    # Existing hands equal those of a source without empty rooms.
    assert_same(together[together.has_hand], hands.batch(torch.arange(24))[together.has_hand])


@pytest.mark.slow
def test_another_source_of_the_same_seed_gives_the_same_and_of_another_seed_others(
    hands: SyntheticHands,
) -> None:
    again = SyntheticHands(load_hand("open"), SIZE_PX, seed=5).batch(torch.arange(4))
    assert_same(again, hands.batch(torch.arange(4)))
    other = SyntheticHands(load_hand("open"), SIZE_PX, seed=6).batch(torch.arange(4))
    assert (other.joints3d_mm - again.joints3d_mm).abs().amax((1, 2)).min() > 1


def test_a_batch_has_all_targets(hands: SyntheticHands) -> None:
    batch = hands.batch(torch.arange(3))
    like = Batch.empty(3, SIZE_PX, load_hand("open").vertex_count)
    for name, value in vars(like).items():
        got = getattr(batch, name)
        assert got.shape == value.shape, name
        assert got.dtype == value.dtype, name
        # A detector's joints only exist where the truth is unknown.
        assert not name.startswith("has_") or got.all() != (name == "has_guess3d"), name
    assert (batch.joints2d_std == 0).all()
    assert set(batch.hand_mask.unique().tolist()) == {0, 255}


def test_2d_joints_are_a_pinhole_s_projection_of_the_3d_ones(
    hands: SyntheticHands, photos: DrawnPhotos
) -> None:
    """A batch has crop axes, rotated by the central ray."""
    batch, scene = hands.batch(torch.arange(16)), photos.scene[:16]
    angles = []
    for row in range(16):
        f, aside = float(scene.focal[row]), scene.ray[row].double().numpy()
        np.testing.assert_allclose(batch.half_side_tan[row], 1 / f, rtol=1e-6)
        np.testing.assert_allclose(batch.ray[row], aside)
        # About the axis perpendicular to optical axis and ray, by the angle between them.
        angle = np.arctan(np.linalg.norm(aside))
        across = np.array([-aside[1], aside[0], 0]) / max(np.linalg.norm(aside), 1e-9)
        rotation = Rotation.from_rotvec(across * angle)
        points = (
            rotation.apply(batch.joints3d_mm[row].double().numpy()) + scene.cam_t_mm[row].double().numpy()
        )
        np.testing.assert_allclose(
            batch.joints2d[row], f * (points[:, :2] / points[:, 2:] - aside), atol=3e-5
        )
        mesh = rotation.apply(batch.vertices_mm[row].double().numpy())
        np.testing.assert_allclose(mesh, scene.vertices_mm[row], atol=1e-3)
        angles.append(np.degrees(angle))
    assert 2 < np.count_nonzero(angles) < 10 and max(angles) > 15


def test_pose_and_betas_give_the_mesh(photos: DrawnPhotos) -> None:
    layer, scene = HandLayer(load_hand("open")), photos.scene
    vertices, joints = layer(roma.rotvec_to_rotmat(scene.pose.view(-1, 16, 3)), scene.betas)
    torch.testing.assert_close(vertices, scene.vertices_mm, atol=1e-2, rtol=0)
    torch.testing.assert_close(joints, scene.joints3d_mm, atol=1e-2, rtol=0)


def test_fingers_stay_within_their_limits_and_out_of_each_other(photos: DrawnPhotos) -> None:
    angles = photos.scene.angles.double().numpy()
    assert (angles >= anatomy.LIMITS[..., 0] - 1e-3).all()
    # The thumb's abduction is limited by the palm.
    over = angles - anatomy.LIMITS[..., 1]
    assert (over[:, 1:] <= 1e-3).all()
    rest = anatomy.rest_joints(load_hand("open"))
    apart, height = plausible_poses.clearance(rest, anatomy.pose_joints(rest, angles))
    # The bank keeps 0.12 and 0.2; interpolation and jitter may reduce this a little.
    assert apart.min() > 0.05
    assert (apart > 0.12).mean() > 0.85
    assert (height > 0.17).mean() > 0.95


def test_angles_become_the_rotations_of_anatomy() -> None:
    hand = load_hand("open")
    poses = Poses(hand, 0, torch.device("cpu"))
    angles = poses.angles(Draws(keys(3, torch.arange(20))))
    expected = anatomy.pose_from_angles(anatomy.rest_joints(hand), angles.double().numpy())
    expected = roma.rotvec_to_rotmat(torch.from_numpy(expected).view(-1, 15, 3))
    torch.testing.assert_close(poses.rotations(angles).double(), expected, atol=1e-5, rtol=0)


def test_all_are_right_hands(photos: DrawnPhotos) -> None:
    sign = anatomy.chirality(photos.scene.joints3d_mm.numpy())
    assert (sign[np.abs(sign) > 0.1 * np.abs(sign).max()] > 0).all()


def test_views_are_from_all_sides(photos: DrawnPhotos) -> None:
    rotation = roma.rotvec_to_rotmat(photos.scene.pose[:, :3])
    # The palm's normal and the fingers' direction, in eight octants each.
    for axis in (1, 0):
        octants = (rotation[:, :, axis] > 0).int() @ torch.tensor([1, 2, 4], dtype=torch.int32)
        assert len(octants.unique()) == 8


def test_the_mask_is_the_hand_less_what_covers_it(photos: DrawnPhotos, unhidden_mask: Tensor) -> None:
    mask = photos.hand_mask[:, 0] > 0
    grown = torch.nn.functional.max_pool2d(unhidden_mask[:, None].float(), 3, 1, 1)[:, 0] > 0
    assert (mask & ~grown).sum() < 1e-4 * mask.sum()
    share = mask.sum((1, 2)) / unhidden_mask.sum((1, 2))
    # Objects, things out of focus and the photo's edge: about 35 % in total.
    assert 0.25 < (share < 0.97).float().mean() < 0.45
    whole = share > 0.97
    agree = (mask[whole] & unhidden_mask[whole]).sum() / (mask[whole] | unhidden_mask[whole]).sum()
    assert agree > 0.97


def test_hidden_vertices_lie_outside_the_mask_and_visible_ones_within(
    hands: SyntheticHands, photos: DrawnPhotos
) -> None:
    seen = hands.visible_vertices(photos)
    at = ((photos.scene.project(photos.scene.vertices_mm) + 1) / 2 * SIZE_PX).long().clamp(0, SIZE_PX - 1)
    grown = torch.nn.functional.max_pool2d(photos.hand_mask.float(), 3, 1, 1)[:, 0] > 0
    inside = grown[torch.arange(COUNT)[:, None], at[..., 1], at[..., 0]]
    assert inside[seen].float().mean() > 0.98
    assert 0.25 < seen.float().mean() < 0.55


def test_hands_lie_inside_the_photo_at_many_distances(photos: DrawnPhotos) -> None:
    seen = photos.scene.project(photos.scene.vertices_mm)
    low, high = seen.amin(1), seen.amax(1)
    assert low.min() > -1
    assert high.max() < 1
    fill = (high - low).amax(1) / 2
    assert 0.6 < fill.min() < 0.7
    assert 0.85 < fill.max() < 0.98
    distance = (photos.scene.vertices_mm + photos.scene.cam_t_mm[:, None])[..., 2].mean(1)
    assert 180 < distance.min() < 350
    assert 1200 < distance.max() < 1600


def test_photos_are_neither_black_nor_blown_out(photos: DrawnPhotos) -> None:
    image, mask = photos.image.float(), photos.hand_mask > 0
    level = (image.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)
    level = level[mask.sum((1, 2, 3)) > 100]
    assert ((level > 25) & (level < 240)).float().mean() > 0.95
    assert level.std() > 15


def test_skin_is_redder_than_green_than_blue_and_runs_from_light_to_dark(photos: DrawnPhotos) -> None:
    tone = photos.vertex_rgb.float().mean(1)
    assert ((tone[:, 0] > tone[:, 1]) & (tone[:, 1] > tone[:, 2] - 3)).all()
    assert tone[:, 0].max() - tone[:, 0].min() > 70


def test_nails_and_creases_are_where_they_belong() -> None:
    hand = load_hand("open")
    channels = skin_map(hand).view(-1, TEXELS**2, len(CHANNELS)).mean(1)[: len(hand.faces)]
    middle = hand.v_template[hand.faces].mean(1)
    nail = channels[:, CHANNELS.index("nail")].numpy() > 0.5
    tips = hand.v_template[hand.tip_vertices]
    nearest = np.linalg.norm(middle[nail][:, None] - tips, axis=-1)
    assert nearest.min(1).max() < 0.02
    assert set(nearest.argmin(1)) == set(range(5))
    palm = channels[:, CHANNELS.index("palm")].numpy()
    assert palm[nail].max() < 0.1
    assert 0.3 < palm.mean() < 0.7


def test_jpeg_loses_what_pillow_s_loses() -> None:
    import io

    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    small = torch.rand(2, 3, 12, 12, generator=generator)
    photo = torch.nn.functional.interpolate(small, size=(64, 64), mode="bicubic").clamp(0, 1)
    for quality in (30, 60, 90):
        ours = jpeg(photo, torch.full((2,), float(quality)))
        for row in range(2):
            pixels = (photo[row].permute(1, 2, 0) * 255).round().byte().numpy()
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=2)
            theirs = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1) / 255
            lost, apart = (theirs - photo[row]).abs().mean(), (ours[row] - theirs).abs().mean()
            assert apart < 0.5 * lost


def test_every_mesh_faces_outwards(hands: SyntheticHands, photos: DrawnPhotos) -> None:
    """Drawing skips clockwise faces, so a mesh inside out would show its back."""
    figure, scene = hands.figure, photos.scene
    points = torch.cat([scene.vertices_mm, scene.others_mm], 1).double()
    for material in figure.material.unique().tolist():
        corners = points[:, figure.faces[figure.material == material]]
        corners = corners - corners.mean((1, 2), keepdim=True)
        volume = torch.linalg.det(corners).sum(1) / 6
        there = volume.abs() > 1  # mm^3: absent objects have none
        assert (volume[there] > 0).all(), material
