"""Compare posing a posed mesh with the layer that poses the template."""

import numpy as np
import pytest
import roma
import torch

from annotator.hand import anatomy, load_hand, plausible_poses
from annotator.hand.layer import HandLayer
from annotator.hand.repose import POSE_SHARE, Reposer

COUNT = 6


@pytest.fixture(scope="module")
def hand():
    return load_hand("open")


@pytest.fixture(scope="module")
def reposer(hand):
    return Reposer(hand)


@pytest.fixture(scope="module")
def posed(hand):
    """Return poses (COUNT, 16, 3), betas, and the layer's meshes for them."""
    rng = np.random.default_rng(0)
    fingers = plausible_poses.sample_poses(anatomy.rest_joints(hand), COUNT, rng).reshape(COUNT, 15, 3)
    pose = torch.from_numpy(np.concatenate([rng.normal(0, 1, (COUNT, 1, 3)), fingers], 1)).float()
    betas = torch.from_numpy(rng.normal(0, 1, (COUNT, 10))).float()
    vertices_mm, _ = HandLayer(hand)(roma.rotvec_to_rotmat(pose), betas)
    return pose, betas, vertices_mm


def parameters(reposer, rotation=0.0, coefficients=0.0, betas=0.0, count=3):
    """Draw random changes of these sizes, (COUNT, count, parameter_count)."""
    sizes = [rotation] * 3 + [coefficients] * reposer.pose_count + [betas] * 10
    noise = torch.randn(COUNT, count, len(sizes), generator=torch.Generator().manual_seed(1))
    return noise * torch.tensor(sizes)


def moved(reposer, meshes_mm, changes):
    bones = reposer.bones(meshes_mm)
    return reposer.move(bones, reposer.skin(bones, meshes_mm), changes)


def test_no_change_leaves_any_mesh_as_it_is(reposer, posed):
    rough = posed[2] + torch.randn(posed[2].shape, generator=torch.Generator().manual_seed(0))
    found, _ = moved(reposer, rough, parameters(reposer))
    torch.testing.assert_close(found, rough[:, None].expand_as(found), atol=1e-3, rtol=0)


def test_frames_are_the_bones_global_rotations(reposer, posed, hand):
    pose, _, vertices_mm = posed
    local = roma.rotvec_to_rotmat(pose)
    expected = [local[:, 0]]
    for bone, parent in enumerate(hand.kintree_table[0][1:], 1):
        expected.append(expected[parent] @ local[:, bone])
    degrees = torch.rad2deg(
        roma.rotmat_geodesic_distance(reposer.bones(vertices_mm).frames, torch.stack(expected, 1))
    )
    assert degrees.mean() < 3 and degrees.max() < 15


def test_the_first_parameters_rotate_the_hand_about_the_wrist(reposer, posed):
    changes = parameters(reposer, rotation=1.0)
    found, _ = moved(reposer, posed[2], changes)
    expected = posed[2][:, None] @ roma.rotvec_to_rotmat(changes[..., :3]).mT
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    "sizes", [{"coefficients": 0.5}, {"betas": 1.0}, {"coefficients": 0.3, "betas": 1.0}]
)
def test_changes_move_the_mesh_as_the_layer_does(reposer, posed, hand, sizes):
    """The match is not exact: frames are fitted, and skin at a bent joint is blended twice."""
    pose, betas, vertices_mm = posed
    changes = parameters(reposer, **sizes)
    found, joints_mm = moved(reposer, vertices_mm, changes)
    _, coefficients, more = changes.split([3, reposer.pose_count, 10], -1)
    order = np.argsort(-hand.hands_std, kind="stable")[: reposer.pose_count]
    components = torch.from_numpy((hand.hands_components * hand.hands_std[:, None])[order])
    fingers = pose[:, None, 1:] + (coefficients @ components).unflatten(-1, (15, 3))
    both = torch.cat([pose[:, None, :1].expand(-1, 3, -1, -1), fingers], 2).flatten(0, 1)
    expected, _ = HandLayer(hand)(roma.rotvec_to_rotmat(both), (betas[:, None] + more).flatten(0, 1))
    expected = expected.unflatten(0, found.shape[:2])
    wrist = torch.from_numpy(hand.joint_regressor[:1])
    apart = ((found - wrist @ found) - expected).norm(dim=-1)
    change = (expected - vertices_mm[:, None]).norm(dim=-1)
    assert apart.mean() < 0.06 * change.mean()
    assert joints_mm.shape == (COUNT, 3, 16, 3)
    assert joints_mm[:, :, 0].norm(dim=-1).max() < 1e-2  # the wrist does not move


def test_some_rows_are_those_rows_of_all(reposer, posed):
    bones = reposer.bones(posed[2])
    changes = parameters(reposer, 0.3, 0.5, 1.0)
    rows = torch.tensor([7, 700, 123])
    found, _ = reposer.move(bones, reposer.skin(bones, posed[2], rows), changes)
    whole, _ = moved(reposer, posed[2], changes)
    torch.testing.assert_close(found, whole[:, :, rows], atol=1e-3, rtol=0)


def test_the_kept_components_hold_most_of_the_variance(reposer, hand):
    variance = np.sort(hand.hands_std.astype(float) ** 2)[::-1]
    kept = reposer.pose_count
    assert variance[:kept].sum() >= POSE_SHARE * variance.sum() > variance[: kept - 1].sum()
    assert reposer.parameter_count == 13 + kept
