"""Fits to landmarks: compare with synthetic hands of known truth, and with other minimisers of the same cost."""

from __future__ import annotations

import numpy as np
import pytest
import roma
import scipy.optimize
import torch

from annotator.config import FitConfig
from annotator.fitting.chain import HandParameters, JointChain, left_jacobian
from annotator.fitting.hand_fit import HandFitter, fit_landmarks
from annotator.fitting.landmarks import Landmarks
from annotator.fitting.laplace import Laplace
from annotator.fitting.objective import FitObjective, Target
from annotator.fitting.solver import solve
from annotator.fitting.start import from_palm
from annotator.hand import anatomy, load_hand, plausible_poses
from annotator.hand.layer import HandLayer
from annotator.quality.metrics import pa_mpjpe
from annotator.quality.uncertainty import coverage, error_of_best, spearman
from trainer.synth.landmarks import simulated_detections

HAND = load_hand("open")
COUNT = 200
#: A landmark network's errors on x, y and depth, millimetres.
NOISE_MM = np.array([3.0, 3.0, 6.0])
PX_PER_MM, MIDDLE_PX = 2.0, np.array([320.0, 240.0, 0.0])


def drawn(count: int, seed: int):
    """Draw plausible right hands at any rotation: vertices, joints (camera axes, mm), rotations and betas."""
    rng = np.random.default_rng(seed)
    poses = torch.from_numpy(plausible_poses.sample_poses(anatomy.rest_joints(HAND), count, rng))
    wrists = roma.unitquat_to_rotmat(
        torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(count, 4))), dim=-1)
    )
    rotations = torch.cat([wrists[:, None], roma.rotvec_to_rotmat(poses.view(count, 15, 3))], 1)
    betas = torch.from_numpy(rng.normal(size=(count, 10)))
    vertices, joints = HandLayer(HAND).double()(rotations, betas)
    return vertices.numpy(), joints.numpy(), rotations, betas


@pytest.fixture(scope="module")
def hands():
    return drawn(COUNT, 11)


@pytest.fixture(scope="module")
def noisy_px(hands):
    """Return landmarks (COUNT, 21, 3) like those of a detector: pixels, x, y and depth."""
    noise = np.random.default_rng(5).normal(size=(COUNT, 21, 3)) * NOISE_MM
    return (hands[1] + noise) * PX_PER_MM + MIDDLE_PX


def fitted(points_px, **options):
    return fit_landmarks(points_px[..., :2], points_px[..., 2], **options)


def test_joints_of_the_chain_are_those_of_the_skinned_hand(hands):
    """Compare with the layer, which poses the full mesh by skinning."""
    rng = np.random.default_rng(0)
    chain = JointChain.of(HAND)
    coefficients = torch.from_numpy(rng.normal(size=(50, chain.pose_dim)))
    rotation, betas = roma.random_rotmat(50).double(), torch.from_numpy(rng.normal(size=(50, 10)))
    moving = HAND.hands_std > 1e-6
    components = torch.from_numpy((HAND.hands_components * HAND.hands_std[:, None])[moving]).double()
    rotvecs = torch.from_numpy(HAND.hands_mean).double() + coefficients @ components
    rotations = torch.cat([rotation[:, None], roma.rotvec_to_rotmat(rotvecs.view(50, 15, 3))], 1)
    _, joints = HandLayer(HAND).double().articulate(rotations, betas)
    joints_mm = 1000 * (joints - joints[:, :1])
    posed = chain.posed(HandParameters(rotation, coefficients, betas))
    assert (posed.joints_mm - joints_mm).abs().max() < 1e-3


def test_derivatives_are_what_finite_differences_find(noisy_px):
    chain = JointChain.of(HAND)
    objective = FitObjective(chain, FitConfig())
    points = torch.from_numpy(noisy_px[:4].copy())
    points[1, 7], points[2, 3:, 2] = torch.nan, torch.nan  # a joint that is hidden, and joints without depth
    target = Target.of(points, FitConfig())
    rng = np.random.default_rng(1)
    size = 3 + chain.pose_dim + 10 + 4
    state = from_palm(chain, Target.of(torch.from_numpy(noisy_px[:4]), FitConfig())).moved(
        torch.from_numpy(0.2 * rng.normal(size=(4, size)))
    )
    _, posed = objective.residuals(state, target)
    exact = objective.derivatives(state, target, posed)
    for number in range(size):
        step = torch.zeros(4, size, dtype=torch.float64)
        step[:, number] = 1e-5
        ahead, behind = (objective.residuals(state.moved(sign * step), target)[0] for sign in (1, -1))
        numeric = (ahead - behind)[:, : exact.shape[1]] / 2e-5
        torch.testing.assert_close(exact[..., number], numeric, rtol=1e-6, atol=1e-6)


def test_the_left_jacobian_converts_small_steps_to_rotations():
    rotvecs = torch.tensor([[0.0, 0, 0], [1e-4, -2e-4, 1e-4], [0.3, -1.2, 0.7], [2.0, 1.5, -1.0]]).double()
    step = torch.tensor([0.2, -0.1, 0.3]).double() * 1e-6
    rotation = roma.rotvec_to_rotmat(rotvecs + step) @ roma.rotvec_to_rotmat(rotvecs).mT
    expected = roma.rotmat_to_rotvec(rotation)
    torch.testing.assert_close((left_jacobian(rotvecs) @ step), expected, rtol=1e-4, atol=1e-12)


def test_the_minimum_is_that_of_scipy_for_the_documented_cost(noisy_px):
    """Use joints of the skinned mesh, axis-angle, plain scales, and the closed form of the 3D scale in each step."""
    config = FitConfig(most_steps=100)
    chain = JointChain.of(HAND)
    layer = HandLayer(HAND).double()
    moving = HAND.hands_std > 1e-6
    components = torch.from_numpy((HAND.hands_components * HAND.hands_std[:, None])[moving]).double()
    mean = torch.from_numpy(HAND.hands_mean).double()
    for points in noisy_px[:3]:
        palm_px = np.linalg.norm(points[9] - points[0])
        seen = torch.from_numpy(points * 90 / palm_px)
        span = torch.from_numpy(np.ptp(points[:, :2], 0)).max() * 90 / palm_px
        target = Target.of(torch.from_numpy(points)[None], config)
        start = from_palm(chain, target)
        solution = solve(FitObjective(chain, config), target, start, config.most_steps)

        def residuals(numbers, seen=seen, span=span):
            numbers = torch.as_tensor(numbers)
            rotvec, coefficients, betas, scale, shift = numbers.split([3, int(moving.sum()), 10, 1, 2])
            rotvecs = torch.cat([rotvec, mean + coefficients @ components]).view(1, 16, 3)
            _, joints = layer.articulate(roma.rotvec_to_rotmat(rotvecs), betas[None])
            joints = 1000 * (joints[0] - joints[0, :1])
            flat = (scale * joints[:, :2] + shift - seen[:, :2]) / (0.02 * span)
            centred, aim = joints - joints.mean(0), seen - seen.mean(0)
            by_least_squares = (centred * aim).sum() / centred.square().sum()
            deep = (by_least_squares * centred - aim) / 10 * 3**0.5
            return torch.cat([flat.flatten(), deep.flatten(), 0.3**0.5 * coefficients, betas])

        first = np.concatenate(
            [
                roma.rotmat_to_rotvec(start.hands.rotation[0]).numpy(),
                np.zeros(int(moving.sum()) + 10),
                [1.0],
                seen[0, :2].numpy(),
            ]
        )
        reference = scipy.optimize.least_squares(
            lambda numbers, residuals=residuals: residuals(numbers).numpy(),
            first,
            jac=lambda numbers, residuals=residuals: torch.autograd.functional.jacobian(
                residuals, torch.as_tensor(numbers), vectorize=True
            ).numpy(),
            xtol=1e-12,
            ftol=1e-12,
        )
        assert solution.cost.item() == pytest.approx(reference.cost, rel=1e-4)


def test_hands_without_noise_come_back(hands):
    vertices, joints, _, _ = hands
    fit = fitted(joints * PX_PER_MM + MIDDLE_PX)
    assert pa_mpjpe(fit.joints3d_mm, joints).mean() < 1.2
    assert pa_mpjpe(fit.vertices_mm, vertices).mean() < 1.5
    assert np.abs(fit.joints2d_px - (joints[..., :2] * PX_PER_MM + MIDDLE_PX[:2])).mean() < 1.0


def test_a_fit_is_nearer_to_the_truth_than_its_landmarks(hands, noisy_px):
    vertices, joints, _, _ = hands
    before = pa_mpjpe((noisy_px - MIDDLE_PX) / PX_PER_MM, joints).mean()
    fit = fitted(noisy_px)
    assert before > 5.5
    assert pa_mpjpe(fit.joints3d_mm, joints).mean() < before / 2
    assert pa_mpjpe(fit.vertices_mm, vertices).mean() < before / 2


def test_labels_of_a_fit_agree_with_each_other(noisy_px):
    """Pose and betas give the mesh, the mesh gives the joints, and the camera gives the joints in the photo."""
    fit = fitted(noisy_px)
    rotations = roma.rotvec_to_rotmat(torch.from_numpy(fit.pose).view(-1, 16, 3))
    vertices, joints = HandLayer(HAND)(rotations, torch.from_numpy(fit.betas))
    np.testing.assert_allclose(fit.vertices_mm, vertices, atol=1e-2)
    np.testing.assert_allclose(fit.joints3d_mm, joints, atol=1e-2)
    components = HAND.hands_components * HAND.hands_std[:, None]
    np.testing.assert_allclose(fit.pose[:, 3:], HAND.hands_mean + fit.coefficients @ components, atol=1e-4)
    seen = fit.scale_px_per_mm[:, None, None] * fit.joints3d_mm[..., :2] + fit.wrist_px[:, None]
    np.testing.assert_allclose(fit.joints2d_px, seen, atol=1e-2)


@pytest.mark.slow
def test_a_left_hand_is_the_mirror_image_of_a_right_one(noisy_px):
    right = fitted(noisy_px)
    mirrored = (noisy_px - MIDDLE_PX) * [-1, 1, 1] + MIDDLE_PX
    left = fitted(mirrored, is_right=np.zeros(COUNT, bool))
    np.testing.assert_allclose(left.pose, right.pose, atol=1e-4)
    np.testing.assert_allclose(left.betas, right.betas, atol=1e-4)
    for name in ("vertices_mm", "joints3d_mm"):
        np.testing.assert_allclose(getattr(left, name) * [-1, 1, 1], getattr(right, name), atol=1e-2)
    np.testing.assert_allclose(
        2 * MIDDLE_PX[0] - left.joints2d_px[..., 0], right.joints2d_px[..., 0], atol=1e-2
    )


def test_size_and_position_in_the_photo_and_the_origin_of_depth_do_not_change_a_hand(noisy_px):
    fit = fitted(noisy_px[:50])
    moved = fitted(noisy_px[:50] * 7.5 + [1000.0, -300.0, 4000.0])
    np.testing.assert_allclose(moved.joints3d_mm, fit.joints3d_mm, atol=1e-2)
    np.testing.assert_allclose(moved.scale_px_per_mm, 7.5 * fit.scale_px_per_mm, rtol=1e-4)


def test_hands_are_fitted_each_by_itself(noisy_px):
    together = fitted(noisy_px[:20])
    alone = fitted(noisy_px[7:8])
    np.testing.assert_allclose(alone.vertices_mm[0], together.vertices_mm[7], atol=1e-3)


@pytest.mark.slow
def test_unknown_landmarks_are_filled_in_and_unknown_depth_is_inferred(hands, noisy_px):
    joints = hands[1]
    part = noisy_px.copy()
    hidden = np.random.default_rng(2).random((COUNT, 21)) < 0.2
    part[hidden] = np.nan
    fit = fitted(part)
    assert pa_mpjpe(fit.joints3d_mm, joints).mean() < 4.5
    flat = fit_landmarks(noisy_px[..., :2])
    with_depth = pa_mpjpe(fitted(noisy_px).joints3d_mm, joints).mean()
    without = pa_mpjpe(flat.joints3d_mm, joints).mean()
    assert with_depth < without < 5.5
    shift = np.abs(flat.joints2d_px - noisy_px[..., :2]).mean()
    assert shift < 2.5 * PX_PER_MM


def test_a_hand_with_too_few_landmarks_is_refused(noisy_px):
    part = noisy_px[:3].copy()
    part[1, 5:] = np.nan
    with pytest.raises(ValueError, match="a hand has 5 landmarks, a fit needs at least 6"):
        fitted(part)
    with pytest.raises(ValueError, match=r"depth_px has shape \(3, 20\)"):
        HandFitter().fit(Landmarks(part[..., :2], part[:, :20, 2], np.ones(3, bool)))


def test_the_std_is_the_spread_of_hands_drawn_from_the_curvature(noisy_px):
    """Compare with Monte Carlo through the skinned hand, with steps so small that the hand moves linearly."""
    fitter = HandFitter()
    chain, count, small = JointChain.of(HAND), 3000, 0.02
    rng = np.random.default_rng(3)
    for points in noisy_px[:2]:
        target = Target.of(torch.from_numpy(points)[None], FitConfig())
        solution = solve(FitObjective(chain, FitConfig()), target, from_palm(chain, target), 50)
        covariance = np.linalg.inv(solution.curvature[0].numpy())
        steps = rng.multivariate_normal(np.zeros(len(covariance)), small**2 * covariance, count)
        states = solution.state.rows(torch.zeros(count, dtype=torch.int64)).moved(torch.from_numpy(steps))
        rotations = fitter.rotations(states.hands)
        vertices, joints = HandLayer(HAND).double()(rotations, states.hands.betas)
        seen = states.log_scale.exp()[:, None, None] * joints[..., :2] + states.shift[:, None]
        spread = Laplace(HAND, chain).spread(solution.state, solution.curvature, vertices[:1])
        for drawn_points, std in (
            (vertices, spread.vertices_mm),
            (joints[:, 1:], spread.joints3d_mm[:, 1:]),
            (seen, spread.joints2d),
        ):
            ratio = drawn_points.std(0) / small / std[0]
            assert abs(ratio.mean() - 1) < 0.03 and ratio.min() > 0.85 and ratio.max() < 1.15
        assert not spread.joints3d_mm[:, 0].any()


@pytest.mark.slow
@pytest.mark.parametrize("depth", [True, False])
def test_the_std_has_the_right_coverage_on_held_out_hands(depth):
    """With a detector's errors: 68 % of the errors per axis are within one std, and the surer half has less error."""
    hands = simulated_detections(HAND, 400, np.random.default_rng(99))
    landmarks = hands.landmarks if depth else hands.landmarks.without_depth()
    fit = HandFitter().fit(landmarks)
    units = fit.units_per_px[:, None, None]
    for error, std in (
        (fit.joints3d_mm - hands.joints3d_mm, fit.joints3d_std_mm),
        (fit.vertices_mm - hands.vertices_mm, fit.vertices_std_mm),
        ((fit.joints2d_px - hands.joints3d_mm[..., :2]) * units, fit.joints2d_std_px * units),
    ):
        known = std > 0
        assert 0.65 <= coverage(std[known], error[known], (0.68,))[0] <= 0.71
        for axis in range(error.shape[-1]):
            known = std[..., axis] > 0
            assert 0.63 <= coverage(std[..., axis][known], error[..., axis][known], (0.68,))[0] <= 0.73
    aligned = pa_mpjpe(fit.joints3d_mm, hands.joints3d_mm)
    hand_std = np.linalg.norm(fit.joints3d_std_mm[:, 1:], axis=-1).mean(1)
    assert spearman(hand_std, aligned) > 0.4
    assert error_of_best(hand_std, aligned, [0.5])[0] < 0.9 * aligned.mean()


def test_a_law_for_another_configuration_is_marked_as_not_calibrated():
    fitted = HandFitter().calibration
    assert fitted.with_depth.fitted_on and fitted.without_depth.fitted_on
    other = HandFitter(config=FitConfig(pose_weight=1.0)).calibration
    assert not other.with_depth.fitted_on and not other.without_depth.fitted_on
