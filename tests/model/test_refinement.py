"""Refinement against synthetic hands with known landmarks, and against the whole fit of the same landmarks."""

from __future__ import annotations

import numpy as np
import pytest
import roma
import torch

from annotator.config import AmvurConfig, NetworkConfig, TextureConfig
from annotator.errors import UserError
from annotator.fitting.hand_fit import fit_landmarks
from annotator.hand import load_hand
from annotator.hand.layer import HandLayer
from annotator.model.network import Network
from annotator.model.prior_net import HandPose, PriorHand, PriorNet
from annotator.model.refinement import Refinement
from annotator.quality.metrics import align, distances

COUNT = 24


@pytest.fixture(scope="module")
def prior_net() -> PriorNet:
    hand = load_hand("open")
    return PriorNet(8, hand, HandLayer(hand), landmarks=True).eval()


@pytest.fixture(scope="module")
def hands(prior_net) -> tuple[PriorHand, PriorHand, torch.Tensor]:
    """True hands, hands 0.2 radians and half a standard deviation of pose off, and the true landmarks."""
    rng = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    wrist = roma.rotvec_to_rotmat(0.6 * normal(COUNT, 3)) @ prior_net.upright
    coefficients, betas = 0.6 * normal(COUNT, 45), 0.7 * normal(COUNT, 10)
    off = roma.rotvec_to_rotmat(0.12 * normal(COUNT, 3))
    with torch.no_grad():
        truth = prior_net.posed(wrist, coefficients, betas)
        start = prior_net.posed(off @ wrist, coefficients + 0.5 * normal(COUNT, 45), 0 * betas)
    shift = torch.tensor([0.1, 0.6, 0.0])  # the wrist of an upright crop
    return truth, start, truth.joints3d_mm / 110 + shift


def pose_of(hand: PriorHand) -> HandPose:
    return HandPose(hand.rotations[:, 0], hand.coefficients, hand.betas)


def pa_mm(joints: torch.Tensor | np.ndarray, truth: PriorHand) -> float:
    theirs = truth.joints3d_mm.numpy()
    return float(distances(align(np.asarray(joints), theirs), theirs).mean())


@pytest.mark.parametrize(("steps", "share"), [(1, 0.55), (2, 0.35)])
def test_steps_bring_hands_nearer_to_the_truth(prior_net, hands, steps, share):
    truth, start, landmarks = hands
    with torch.no_grad():
        refined = prior_net.posed(*Refinement(load_hand("open"), steps)(pose_of(start), landmarks))
    assert pa_mm(refined.joints3d_mm, truth) < share * pa_mm(start.joints3d_mm, truth)
    off, before = ((h.joints3d_mm - truth.joints3d_mm).norm(dim=-1).mean() for h in (refined, start))
    assert off < before


def test_many_steps_give_the_hand_of_the_whole_fit(prior_net, hands):
    """The fit starts from the palm's Procrustes instead, and works in double precision."""
    _, start, landmarks = hands
    with torch.no_grad():
        refined = prior_net.posed(*Refinement(load_hand("open"), 15)(pose_of(start), landmarks))
    fit = fit_landmarks(100 * landmarks[..., :2].numpy(), 100 * landmarks[..., 2].numpy())
    off = distances(refined.joints3d_mm.numpy(), fit.joints3d_mm).mean(1)
    assert np.median(off) < 0.3
    assert off.mean() < 1  # a fit may end in another minimum


def test_landmarks_that_are_no_numbers_leave_the_hand_as_it_was(prior_net, hands):
    _, start, landmarks = hands
    broken = landmarks.clone()
    broken[0] = torch.nan
    wrist, coefficients, betas = Refinement(load_hand("open"), 2)(pose_of(start), broken)
    assert all(values.isfinite().all() for values in (wrist, coefficients, betas))
    torch.testing.assert_close(
        coefficients[1:], Refinement(load_hand("open"), 2)(pose_of(start), landmarks)[1][1:]
    )


def small(**changes) -> NetworkConfig:
    amvur = AmvurConfig(start="prior_net", tokens=20, width=16, blocks=1, heads=2)
    return NetworkConfig(
        **{"backbone": "hand_landmark", "crop_px": 64, "read_outs": True, "amvur": amvur}
        | {"texture": TextureConfig(kind="none"), "refine_steps": 2}
        | changes
    )


def test_training_has_prior_nets_own_hand_and_prediction_the_refined_one():
    network = Network(small(), load_hand("open"))
    images = torch.rand(2, 3, 64, 64)
    network.eval()
    with torch.no_grad():
        network.prior_net.ik[-1].bias.normal_(0, 0.05)
        network.heads.image.bias += 0.1 * torch.randn_like(network.heads.image.bias)
        refined = network(images)
    network.train()
    trained = network(images)
    assert trained.prior.vertices_mm.requires_grad and not refined.prior.vertices_mm.requires_grad
    assert (trained.prior.joints3d_mm - refined.prior.joints3d_mm).abs().max() > 1
    # AMVUR's last layer starts at zero: its mean is the refined hand, less the wrist's position.
    torch.testing.assert_close(refined.vertices.mean_mm, refined.prior.vertices_mm, atol=0.05, rtol=0)


def test_refinement_without_landmarks_is_refused():
    with pytest.raises(UserError, match="refine_steps needs read_outs"):
        small(read_outs=False)
