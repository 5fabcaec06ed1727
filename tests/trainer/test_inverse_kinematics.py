"""Inverse kinematics from drawn joints: what is drawn, and that it is learnt."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import roma
import torch

from annotator.hand import load_hand
from annotator.hand.few_vertices import few_vertices
from annotator.hand.layer import HandLayer
from annotator.model.landmarker.network import normalised
from annotator.model.prior_net import PriorNet
from annotator.quality.metrics import pa_mpjpe
from tests.support import mano_file
from tests.support.pinhole import project_pinhole
from trainer.inverse_kinematics import (
    DrawnLandmarks,
    InverseKinematicsConfig,
    NoiseConfig,
    seen_joints,
    train_inverse_kinematics,
    with_errors,
)
from trainer.keyed_random import Draws, keys
from trainer.synth.pool import Pool
from trainer.synth.scene import draw_hands

HAND = load_hand("open")
NONE = NoiseConfig(joint_mm=(0.0, 0.0, 0.0), rotation_deg=0.0, any_rotation=0.0)


@pytest.fixture(scope="module")
def source() -> DrawnLandmarks:
    return DrawnLandmarks(HAND, seed=3)


def quietly(source: DrawnLandmarks, **changes) -> DrawnLandmarks:
    """The same hands under less noise."""
    other = copy.copy(source)
    other.noise = replace(NONE, **changes)
    return other


@pytest.mark.parametrize("name", ["open", "mano"])
def test_a_hand_of_few_vertices_moves_like_the_full_one(name, tmp_path):
    path = tmp_path / "MANO_RIGHT.pkl"
    mano_file.write_mano_file(path)
    hand = load_hand("open" if name == "open" else f"mano:{path}")
    few = few_vertices(hand, 40)
    generator = torch.Generator().manual_seed(0)
    rotations = roma.rotvec_to_rotmat(0.6 * torch.randn(5, 16, 3, generator=generator))
    betas = torch.randn(5, 10, generator=generator)
    vertices, joints = HandLayer(hand).articulate(rotations, betas)
    wrist = joints[:, :1]
    few_vertices_mm, few_joints_mm = HandLayer(few)(rotations, betas)
    torch.testing.assert_close(few_joints_mm, 1000 * (joints - wrist), atol=1e-3, rtol=0)
    every_mm = 1000 * (vertices - wrist)
    nearest = (few_vertices_mm[:, :40, None] - every_mm[:, None]).norm(dim=-1).amin(-1)
    assert nearest.max() < 1e-3
    assert len(np.unique(few.v_template[:40], axis=0)) == 40


def test_joints_are_seen_where_a_pinhole_camera_shows_them(source):
    hands = draw_hands(source.poses, source.layer, Pool(keys(5, torch.arange(50))))
    focal = hands.focal.numpy()
    shown = project_pinhole(hands.joints3d_mm.numpy(), hands.cam_t_mm.numpy(), focal, np.zeros((50, 2)))
    landmarks, axes = seen_joints(hands)
    per_mm = (focal / hands.cam_t_mm[:, 2].numpy())[:, None, None]
    np.testing.assert_allclose(landmarks[..., :2].numpy() * per_mm, shown, atol=1e-4)
    # The ray through the centre of the visible joints; depth is measured along it.
    ray = np.append((shown.min(1) + shown.max(1)) / 2 / focal[:, None], np.ones((50, 1)), 1)
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    np.testing.assert_allclose(axes[..., 2].numpy(), ray, atol=1e-5)
    depth = (hands.joints3d_mm.numpy() * ray[:, None]).sum(-1)
    np.testing.assert_allclose(landmarks[..., 2].numpy(), depth, atol=1e-3)


def test_hands_are_upright_and_their_truth_lies_in_the_same_axes(source):
    drawn = quietly(source).hands(torch.arange(300))
    up = drawn.landmarks_mm[:, 9, :2] - drawn.landmarks_mm[:, 0, :2]
    assert up[:, 0].abs().max() < 1e-2 and (up[:, 1] < 0).all()
    vertices, joints = source.layer(drawn.rotations, drawn.betas)
    torch.testing.assert_close(drawn.vertices_mm, vertices, atol=1e-2, rtol=0)
    torch.testing.assert_close(drawn.joints3d_mm, joints, atol=1e-2, rtol=0)
    # After alignment without rotation, landmarks and truth differ only by perspective.
    seen, true = (p[..., :2] - p[..., :2].mean(1, keepdim=True) for p in (drawn.landmarks_mm, joints))
    size = (seen * true).sum((1, 2)) / true.square().sum((1, 2))
    left = (seen - size[:, None, None] * true).norm(dim=-1).mean(1)
    assert left.median() < 5 and left.max() < 25


def test_every_view_and_every_rotation_up_to_45_degrees_is_drawn(source):
    noisy, upright = (s.hands(torch.arange(3000)) for s in (source, quietly(source)))
    up = upright.rotations[:, 0].mT @ noisy.rotations[:, 0]
    rotation = torch.rad2deg(roma.rotmat_to_rotvec(noisy.rotations[:, 0] @ upright.rotations[:, 0].mT))
    assert rotation[:, :2].abs().max() < 0.1 and up.isfinite().all()
    counts = torch.histc(rotation[:, 2], 9, -45, 45)
    assert counts.min() > 60
    # The back of the hand (y at rest) points into each octant around the camera.
    octants = (upright.rotations[:, 0, :, 1] > 0).long() @ torch.tensor([1, 2, 4])
    assert torch.bincount(octants, minlength=8).min() > 100


def test_errors_have_the_spread_that_the_configuration_names():
    draws = Draws(keys(1, torch.arange(20_000)))
    finger, joint = 2.0, torch.tensor([3.0, 3, 6])
    noise = replace(NONE, joint_mm=(3.0, 3.0, 6.0), finger=finger)
    off = with_errors(torch.zeros(20_000, 21, 3), draws, noise)
    for index, along in ((0, 0), (5, 0), (6, 1 / 3), (8, 1)):
        expected = joint * (1 + (finger * along) ** 2) ** 0.5
        torch.testing.assert_close(off[:, index].std(0), expected, rtol=0.03, atol=0)
    x = off[..., 0].T.corrcoef()
    assert x[7, 8] > 0.5 and x[8, 12].abs() < 0.03
    wrong = with_errors(torch.zeros(20_000, 21, 3), draws, replace(noise, wrong=0.2, wrong_times=10.0))
    far = (wrong[:, 4::4] / joint).norm(dim=-1) > 12
    assert far.sum(1).max() <= 2 and 0.1 < far.any(1).float().mean() < 0.2


def mean_error_mm(prior_net: PriorNet, source: DrawnLandmarks) -> float:
    drawn = source.hands(torch.arange(10**6, 10**6 + 400))
    with torch.no_grad():
        hand = prior_net.from_landmarks(normalised(drawn.landmarks_mm))
    return pa_mpjpe(hand.joints3d_mm.numpy(), drawn.joints3d_mm.numpy()).mean()


@pytest.mark.slow
def test_it_learns_poses_from_joints_and_changes_nothing_else(source):
    torch.manual_seed(0)
    prior_net = PriorNet(8, HAND, HandLayer(HAND), landmarks=True)
    before = copy.deepcopy(prior_net.mlp.state_dict())
    of_mean_hand = mean_error_mm(prior_net, source)
    config = InverseKinematicsConfig(batch_size=128, learning_rate=2e-3)
    seen: list[float] = []
    train_inverse_kinematics(prior_net, HAND, 200, 0, config, lambda step, loss: seen.append(loss))
    assert len(seen) == 200 and np.mean(seen[-20:]) < 0.5 * np.mean(seen[:20])
    assert mean_error_mm(prior_net, source) < 0.6 * of_mean_hand
    assert all(torch.equal(values, before[name]) for name, values in prior_net.mlp.state_dict().items())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        prior_net = PriorNet(8, HAND, HandLayer(HAND), landmarks=True)
        train_inverse_kinematics(prior_net, HAND, 2, seed, InverseKinematicsConfig(batch_size=8))
        assert prior_net.ik is not None
        return torch.cat([values.flatten() for values in prior_net.ik.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
