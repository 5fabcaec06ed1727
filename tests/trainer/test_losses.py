from __future__ import annotations

import math

import numpy as np
import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from annotator.coordinates import project_weak
from annotator.hand import anatomy, gestures, load_hand, plausible_poses
from annotator.model.amvur import Gaussian
from annotator.model.camera import PRIOR_STD, WeakCamera, fit_camera
from annotator.quality.metrics import align
from tests.support import mano_file
from trainer import losses

LOG_ROOT_2PI = math.log(2 * math.pi) / 2
SHAPE = (4, 21, 3)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def q_of(seed: int = 1, shape: tuple[int, ...] = SHAPE) -> Gaussian:
    return Gaussian(30 * random(*shape, seed=seed), 10 * random(*shape, seed=seed + 100).exp())


def camera_of(seed: int = 1, rotation: bool = True) -> WeakCamera:
    r = random(4, 3, seed=seed) * 0.1 * rotation
    std = PRIOR_STD * random(4, 6, seed=seed + 100).exp()
    if not rotation:
        std = std * torch.tensor([1.0, 0, 0, 0, 1, 1])
    return WeakCamera(0.01 * random(4, seed=seed + 1).exp(), r, random(4, 2, seed=seed + 2), std)


# Elementwise


def test_nll_is_that_of_the_normal_distribution_without_its_constant():
    target, mean, std = random(50), random(50, seed=1), random(50, seed=2).exp()
    expected = -Normal(mean, std).log_prob(target) - LOG_ROOT_2PI
    torch.testing.assert_close(losses.gaussian_nll(target, mean, std), expected)


@pytest.mark.parametrize("prior_std", [1.0, 0.1])
def test_kl_is_the_one_between_normal_distributions(prior_std):
    mean, std, prior = random(50), random(50, seed=1).exp(), random(50, seed=2)
    expected = kl_divergence(Normal(mean, std), Normal(prior, prior_std))
    torch.testing.assert_close(losses.kl_to_prior(mean, std, prior, prior_std), expected)


def test_kl_reaches_both_sides_with_opposite_pulls():
    mean, prior = random(5).requires_grad_(), random(5, seed=1).requires_grad_()
    losses.kl_to_prior(mean, torch.ones(5, dtype=torch.float64), prior).sum().backward()
    torch.testing.assert_close(mean.grad, (mean - prior).detach())
    torch.testing.assert_close(prior.grad, -mean.grad)


def test_elementwise_losses_have_the_slopes_of_finite_differences():
    target, mean, prior, noise = (random(6, seed=s).requires_grad_() for s in range(4))
    std = random(6, seed=5).exp().requires_grad_()
    assert gradcheck(losses.gaussian_nll, (target, mean, std))
    assert gradcheck(losses.kl_to_prior, (mean, std, prior))
    assert gradcheck(losses.reparameterized, (mean, std, noise))


def test_draws_have_the_mean_and_std_they_are_drawn_with():
    drawn = losses.reparameterized(torch.tensor(3.0), torch.tensor(0.5), random(100_000).float())
    assert abs(drawn.mean() - 3) < 0.01
    assert abs(drawn.std() - 0.5) < 0.01


# (3) and (5)


def test_vertices_loss_by_hand_is_in_centimetres():
    # An error of 20 mm with a std of 20 mm, 10 mm from the prior: 1/2 + log 2 + w (4 + 1 - 1 - log 4) / 2.
    q = Gaussian(torch.full((1, 1, 3), 30.0), torch.full((1, 1, 3), 20.0))
    loss = losses.vertices_loss(q, torch.full((1, 1, 3), 50.0))
    loss = loss + 0.5 * losses.vertices_kl(q, torch.full((1, 1, 3), 20.0))
    expected = 0.5 + math.log(2) + 0.5 * (2 - math.log(2))
    torch.testing.assert_close(loss, torch.full((1, 1, 3), expected))


def test_vertices_loss_is_formula_3():
    q, target, prior = q_of(), 30 * random(*SHAPE), 30 * random(*SHAPE, seed=9)
    normal = Normal(q.mean_mm / 10, q.std_mm / 10)
    expected = -normal.log_prob(target / 10) - LOG_ROOT_2PI
    torch.testing.assert_close(losses.vertices_loss(q, target), expected)
    kl = kl_divergence(normal, Normal(prior / 10, 1.0))
    torch.testing.assert_close(losses.vertices_kl(q, prior), kl)


def test_prior_net_alone_has_a_squared_error_in_centimetres():
    q = Gaussian(torch.zeros(1, 2, 3), torch.full((1, 2, 3), 10.0))
    loss = losses.vertices_loss(q, torch.full((1, 2, 3), 20.0))
    torch.testing.assert_close(loss, torch.full((1, 2, 3), 2.0))


def test_a_target_with_a_std_of_its_own_is_the_mean_over_its_distribution():
    q, target = q_of(), 30 * random(*SHAPE)
    doubt = (1 + random(*SHAPE, seed=7).abs()) * 8
    of_label = Normal(target / 10, doubt / 10)
    # The cross-entropy of one normal distribution with another.
    expected = kl_divergence(of_label, Normal(q.mean_mm / 10, q.std_mm / 10)) + of_label.entropy()
    torch.testing.assert_close(losses.vertices_loss(q, target, doubt), expected - LOG_ROOT_2PI)
    torch.testing.assert_close(losses.joints3d_loss(q, target, doubt), (expected - LOG_ROOT_2PI)[:, 1:])
    torch.testing.assert_close(losses.vertices_loss(q, target, 0 * doubt), losses.vertices_loss(q, target))


@pytest.mark.parametrize("w", [1e-9, 0.1, 1.0])
def test_learning_from_labels_does_not_reduce_std_below_theirs_within_the_limit_of_w(w):
    """The closed form in `losses.py` with e^2 + label_std^2 in place of e^2; exact for w = 0."""
    mean, target = 40 * random(*SHAPE), 40 * random(*SHAPE, seed=1)
    doubt = 30 * random(*SHAPE, seed=2).abs()
    square = ((mean - target).square() + doubt.square()) / 100
    best = 10 * ((w - 1 + ((w - 1) ** 2 + 4 * w * square).sqrt()) / (2 * w)).sqrt()
    if w < 1e-3:
        torch.testing.assert_close(best, 10 * square.sqrt(), rtol=1e-3, atol=1e-3)
    best.requires_grad_()
    q = Gaussian(mean, best)
    # At the prior's mean, where the KL depends only on std.
    loss = losses.vertices_loss(q, target, doubt) + w * losses.vertices_kl(q, mean)
    (slope,) = torch.autograd.grad(loss.sum(), best)
    assert (slope * best).abs().max() < 1e-5


def test_a_label_counts_by_its_variance():
    stds = torch.tensor([0.0, 10, 20, 1000], dtype=torch.float64)
    expected = torch.tensor([1, 1 / 2, 1 / 5, 1e-4], dtype=torch.float64)
    torch.testing.assert_close(losses.label_weight(stds), expected, rtol=1e-3, atol=0)


def mirrored(joints: torch.Tensor) -> torch.Tensor:
    return joints * torch.tensor([-1.0, 1.0, 1.0], dtype=joints.dtype)


@pytest.mark.parametrize("change", [lambda x: x, mirrored], ids=["as it is", "mirrored"])
def test_aligned_loss_is_the_squared_error_that_the_benchmarks_procrustes_leaves(change):
    target, mean = 40 * random(*SHAPE), change(40 * random(*SHAPE) + 15 * random(*SHAPE, seed=1))
    left = align(mean.numpy(), target.numpy()) - target.numpy()
    np.testing.assert_allclose(losses.aligned_loss(mean, target), np.square(left / 10) / 2, atol=1e-9)


def test_aligned_loss_ignores_the_pose_of_the_hand():
    mean = 40 * random(*SHAPE)
    rotated = 1.3 * mean @ roma.rotvec_to_rotmat(random(4, 3, seed=2)) + 100 * random(4, 1, 3, seed=3)
    assert losses.aligned_loss(rotated, mean).max() < 1e-20
    assert losses.aligned_loss(mirrored(mean), mean).mean() > 1


def test_aligned_loss_neither_shrinks_nor_rotates_a_hand():
    target, mean = 40 * random(*SHAPE), (40 * random(*SHAPE) + 15 * random(*SHAPE, seed=1)).requires_grad_()
    (slope,) = torch.autograd.grad(losses.aligned_loss(mean, target).sum(), mean)
    around = (mean - mean.mean(1, keepdim=True)).detach()
    assert (slope * around).sum((1, 2)).abs().max() < 1e-9  # gradient of a common scale
    assert torch.linalg.cross(around, slope).sum(1).abs().max() < 1e-9  # gradient of a common rotation


def test_a_std_that_learns_from_aligned_errors_is_best_where_it_is_that_error():
    q, target = q_of(), 40 * random(*SHAPE, seed=7)
    rotated = target @ roma.rotvec_to_rotmat(random(4, 3, seed=2)) + 100  # any pose of the target
    for there in (target, rotated):
        mean, log_std = q.mean_mm.clone().requires_grad_(), q.std_mm.log().requires_grad_()
        losses.aligned_std_loss(Gaussian(mean, log_std.exp()), there).sum().backward()
        assert mean.grad is None or not mean.grad.any()
        # The benchmarks' Procrustes: errors in the target's frame, rotated into q's frame.
        laid = torch.from_numpy(align(q.mean_mm.numpy(), there.numpy()))
        rotation = roma.rigid_points_registration(q.mean_mm, there, compute_scaling=True)[0]
        error = (laid - there) @ rotation
        torch.testing.assert_close(log_std.grad, 1 - (error / q.std_mm).square())


def test_aligned_loss_has_the_slopes_of_finite_differences_though_nothing_goes_through_its_fit():
    target, mean = 40 * random(*SHAPE), (40 * random(*SHAPE) + 15 * random(*SHAPE, seed=1)).requires_grad_()
    assert gradcheck(lambda x: losses.aligned_loss(x, target).sum(), (mean,))


def test_aligned_loss_of_nan_is_nan_and_raises_nothing():
    mean = random(*SHAPE)
    mean[0, 3] = math.nan
    loss = losses.aligned_loss(mean, random(*SHAPE, seed=1))
    assert not loss[0].isfinite().any()
    assert loss[1:].isfinite().all()


def test_joints_loss_leaves_the_wrist_out():
    q, target, prior = q_of(), 30 * random(*SHAPE), 30 * random(*SHAPE, seed=9)
    target.requires_grad_()
    loss = losses.joints3d_loss(q, target)
    torch.testing.assert_close(loss, losses.vertices_loss(q, target)[:, 1:])
    torch.testing.assert_close(losses.joints3d_kl(q, prior), losses.vertices_kl(q, prior)[:, 1:])
    loss.sum().backward()
    assert (target.grad[:, 0] == 0).all()
    assert (target.grad[:, 1:] != 0).all()


def best_std_mm(errors_mm: torch.Tensor, weight: float) -> torch.Tensor:
    """Minimise (3) over sigma, with mu fixed at the prior's mean, `errors_mm` from the target."""
    errors = errors_mm.view(1, -1, 1)
    log_std = torch.full_like(errors, math.log(10.0)).requires_grad_()
    optimizer = torch.optim.LBFGS([log_std], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        q = Gaussian(torch.zeros_like(errors), log_std.exp())
        loss = (
            losses.vertices_loss(q, errors) + weight * losses.vertices_kl(q, torch.zeros_like(errors))
        ).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_std.detach().exp().flatten()


ERRORS_MM = torch.tensor([2.5, 10.0, 40.0], dtype=torch.float64)


def test_at_weight_1_the_best_variance_is_the_error_in_centimetres():
    std_mm = best_std_mm(ERRORS_MM, 1.0)
    torch.testing.assert_close((std_mm / 10).square(), ERRORS_MM / 10, rtol=1e-4, atol=0)
    torch.testing.assert_close(std_mm, torch.tensor([5.0, 10.0, 20.0]).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("weight", [0.01, 0.3, 2.0])
def test_at_other_weights_the_best_variance_is_that_of_the_docstring(weight):
    e = ERRORS_MM / 10
    expected = (weight - 1 + ((weight - 1) ** 2 + 4 * weight * e**2).sqrt()) / (2 * weight)
    torch.testing.assert_close((best_std_mm(ERRORS_MM, weight) / 10).square(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("unit_mm, std_mm", [(1.0, math.sqrt(10)), (10.0, 10.0), (1000.0, 100.0)])
def test_the_unit_of_length_sets_what_10_mm_of_error_become(unit_mm, std_mm, monkeypatch):
    monkeypatch.setattr(losses, "CM", unit_mm)
    monkeypatch.setattr(losses, "PRIOR_STD_MM", unit_mm)
    assert best_std_mm(ERRORS_MM[1:2], 1.0).item() == pytest.approx(std_mm, rel=1e-3)


# (4)


def test_camera_loss_is_formula_4_in_the_cameras_units():
    camera, target = camera_of(), random(4, 6)
    loss = losses.camera_loss(camera, target)
    means = torch.stack([camera.scale_per_mm * 100, *camera.translation.unbind(1)], 1)
    nll = -Normal(means, camera.std[:, [0, 4, 5]]).log_prob(target[:, [0, 4, 5]]) - LOG_ROOT_2PI
    torch.testing.assert_close(loss[:, [0, 4, 5]], nll)
    prior = kl_divergence(Normal(camera.rotvec, camera.std[:, 1:4]), Normal(0.0, PRIOR_STD))
    torch.testing.assert_close(loss[:, 1:4], prior)


def test_camera_kl_is_the_one_between_normal_distributions():
    q, p = camera_of(), camera_of(seed=7)
    expected = kl_divergence(
        Normal(losses.camera_numbers(q), q.std), Normal(losses.camera_numbers(p), PRIOR_STD)
    )
    torch.testing.assert_close(losses.camera_kl(q, p), expected)


def test_a_camera_without_rotation_has_no_loss_or_gradient_for_it():
    camera, p = camera_of(rotation=False), camera_of(seed=7, rotation=False)
    for tensor in (camera.scale_per_mm, camera.rotvec, camera.translation, camera.std):
        tensor.requires_grad_()
    both = losses.camera_loss(camera, random(4, 6)) + losses.camera_kl(camera, p)
    assert (both[:, 1:4] == 0).all()
    both.sum().backward()
    assert (camera.rotvec.grad == 0).all()
    assert (camera.std.grad[:, 1:4] == 0).all()
    assert camera.std.grad.isfinite().all()
    assert (camera.std.grad[:, [0, 4, 5]] != 0).all()


NUMBERS = st.floats(-2, 2, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.001, 0.1),
    NUMBERS,
    NUMBERS,
    st.sets(st.integers(0, 20), min_size=2),
    st.integers(0, 999),
    st.sampled_from([0.0, 1e9, math.nan, math.inf]),
)
def test_a_known_camera_is_recovered_for_any_values_of_unknown_joints(scale, x, y, known, seed, junk):
    joints = 50 * random(1, 21, 3, seed=seed)
    has = torch.zeros(1, 21, dtype=torch.bool)
    has[0, list(known)] = True
    eye = torch.eye(3, dtype=torch.float64)[None]
    scales, translation = torch.tensor([scale]).double(), torch.tensor([[x, y]]).double()
    joints2d = project_weak(joints, scales, eye, translation)[..., :2]
    joints2d[~has], joints[~has] = junk, -junk
    fitted, valid = fit_camera(joints, joints2d, has)
    assert valid.all()
    expected = torch.tensor([[100 * scale, 0, 0, 0, x, y]]).double()
    torch.testing.assert_close(fitted, expected, rtol=1e-6, atol=1e-6)
    assert not fitted.requires_grad


def test_the_fitted_camera_is_the_least_squares_one():
    joints, joints2d = 50 * random(3, 21, 3), random(3, 21, 2, seed=1)
    joints2d = joints2d + 0.02 * joints[..., :2]
    has = torch.rand(3, 21, generator=torch.Generator().manual_seed(0)) < 0.7
    fitted, valid = fit_camera(joints, joints2d, has)
    assert valid.all()
    for row in range(3):
        points, ones = joints[row, has[row], :2].numpy(), np.ones((int(has[row].sum()), 1))
        zeros = 0 * ones
        design = np.concatenate(
            [np.hstack([points[:, :1], ones, zeros]), np.hstack([points[:, 1:], zeros, ones])]
        )
        solution = np.linalg.lstsq(design, joints2d[row, has[row]].numpy().T.ravel(), rcond=None)[0]
        np.testing.assert_allclose(fitted[row, [0, 4, 5]].numpy() / [100, 1, 1], solution, rtol=1e-9)


def test_no_camera_is_fitted_to_too_little_or_to_a_mirror_image():
    joints = 50 * random(5, 21, 3)
    joints2d = 0.01 * joints[..., :2]
    has = torch.ones(5, 21, dtype=torch.bool)
    has[0] = False
    has[1, 1:] = False
    joints[2, :, :2] *= 1e-3  # all within a fraction of a millimetre
    joints2d[3] *= -1
    fitted, valid = fit_camera(joints, joints2d, has)
    assert valid.tolist() == [False, False, False, False, True]
    assert (fitted[:4] == 0).all()


# (6)


def covariances(*shape: int) -> torch.Tensor:
    factor = 0.1 * random(*shape, 2, 2, seed=3)
    return factor @ factor.transpose(-1, -2) + 1e-3 * torch.eye(2, dtype=torch.float64)


def test_joints2d_loss_is_the_multivariate_normals():
    target, mean, covariance = random(4, 21, 2), random(4, 21, 2, seed=1), covariances(4, 21)
    expected = -MultivariateNormal(mean, covariance).log_prob(target) - 2 * LOG_ROOT_2PI
    torch.testing.assert_close(losses.joints2d_loss(target, mean, covariance), expected)
    label_std = 0.1 * random(4, 21).abs()
    wider = covariance + torch.diag_embed(label_std.square()[..., None].expand(-1, -1, 2))
    expected = -MultivariateNormal(mean, wider).log_prob(target) - 2 * LOG_ROOT_2PI
    torch.testing.assert_close(losses.joints2d_loss(target, mean, covariance, label_std), expected)


def test_joints2d_loss_by_hand():
    # Variances 4 and 1, covariance 1: the determinant is 3, the distance of (2, 0) squared 4/3.
    covariance = torch.tensor([[4.0, 1.0], [1.0, 1.0]])[None, None]
    loss = losses.joints2d_loss(torch.tensor([[[2.0, 0.0]]]), torch.zeros(1, 1, 2), covariance)
    assert loss.item() == pytest.approx((4 / 3 + math.log(3)) / 2)


def test_joints2d_loss_has_the_slopes_of_finite_differences():
    target, mean = (random(2, 3, 2, seed=s).requires_grad_() for s in range(2))
    label_std = random(2, 3).exp().requires_grad_()
    assert gradcheck(losses.joints2d_loss, (target, mean, covariances(2, 3).requires_grad_(), label_std))


def test_joints2d_loss_is_finite_where_rounding_leaves_no_variance():
    covariance = torch.tensor([[1e6, 1e6], [1e6, 1e6 - 1]])[None, None].requires_grad_()
    loss = losses.joints2d_loss(torch.ones(1, 1, 2), torch.zeros(1, 1, 2), covariance)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert covariance.grad.isfinite().all()


def test_joints_that_are_masked_give_no_gradient():
    mean, covariance = random(2, 21, 2).requires_grad_(), covariances(2, 21).requires_grad_()
    has = torch.arange(42).view(2, 21) % 3 == 0
    loss = losses.joints2d_loss(torch.zeros(2, 21, 2), mean, covariance, torch.zeros(2, 21))
    (torch.where(has, loss, 0).sum() / has.sum()).backward()
    for gradient in (mean.grad, covariance.grad):
        assert gradient.isfinite().all()
        assert (gradient[~has] == 0).all()
        assert (gradient[has].flatten(1).abs().sum(1) > 0).all()


# (12)


def test_texture_loss_is_the_mean_colour_difference_under_the_mask():
    image, rendered = torch.zeros(1, 2, 2, 3), torch.full((1, 2, 2, 3), 0.25)
    rendered[0, 0, 0] = torch.tensor([0.3, 0.0, 0.6])
    mask = torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])
    expected = torch.tensor([[[0.3, 0.125], [0.0, 0.25]]])
    torch.testing.assert_close(losses.texture_loss(image, rendered, mask), expected)
    torch.testing.assert_close(losses.texture_loss(image, rendered, mask == 1)[0, 0, 1], torch.tensor(0.0))


# Joint limits


@pytest.fixture(scope="module", params=["open", "mano"])
def hand(request, tmp_path_factory):
    if request.param == "open":
        return load_hand("open")
    path = tmp_path_factory.mktemp("mano") / "MANO_RIGHT.pkl"
    mano_file.write_mano_file(path)
    return load_hand(f"mano:{path}")


@pytest.fixture(scope="module")
def limits(hand):
    return losses.JointLimits(hand).double()


def rotations_of(poses: np.ndarray) -> torch.Tensor:
    """Return rotations (N, 16, 3, 3) with any rotation of the wrist."""
    rotvecs = torch.from_numpy(poses).double().view(-1, 15, 3)
    return roma.rotvec_to_rotmat(torch.cat([random(len(rotvecs), 1, 3), rotvecs], 1))


def posed(hand, angles: np.ndarray) -> torch.Tensor:
    return rotations_of(anatomy.pose_from_angles(anatomy.rest_joints(hand), angles))


def test_joint_limits_cost_nothing_in_any_sampled_pose(hand, limits):
    poses = plausible_poses.sample_poses(anatomy.rest_joints(hand), 500, np.random.default_rng(0))
    assert limits(rotations_of(poses)).max() == 0


def test_joint_limits_cost_nothing_in_any_gesture(hand, limits):
    rest = anatomy.rest_joints(hand)
    poses = np.stack([gestures.gesture_pose(rest, name) for name in gestures.GESTURES])
    assert limits(rotations_of(poses)).max() == 0
    assert losses.JointLimits(hand)(rotations_of(poses).float()).max() == 0


def test_joint_limits_cost_nothing_at_the_limits_themselves(hand, limits):
    angles = np.stack([anatomy.LIMITS[..., 0], anatomy.LIMITS[..., 1]])
    assert limits(posed(hand, angles)).max() == 0


def test_angles_are_read_as_they_were_put_in_even_beyond_the_limits(hand, limits):
    low, high = anatomy.LIMITS[..., 0] - 15, anatomy.LIMITS[..., 1] + 15
    wanted = np.random.default_rng(1).uniform(low, high, (200, 5, 4))
    got = np.degrees(limits.angles(posed(hand, wanted)).numpy())
    np.testing.assert_allclose(got[:, :, 0, 0], wanted[:, :, 0], atol=1e-4)
    np.testing.assert_allclose(got[..., 1], wanted[:, :, 1:], atol=1e-4)
    np.testing.assert_allclose(got[:, :, 1:, 0], 0, atol=1e-4)
    np.testing.assert_allclose(got[..., 2], 0, atol=1e-4)


@pytest.mark.parametrize("finger, angle", [(0, 0), (0, 2), (1, 0), (2, 1), (3, 2), (4, 3)])
@pytest.mark.parametrize("side", [0, 1])
def test_the_cost_is_the_squared_excess_of_the_angle_that_is_too_large(hand, limits, finger, angle, side):
    angles = gestures.GESTURES["relaxed"][None].copy()
    angles[0, finger, angle] = anatomy.LIMITS[finger, angle, side] + (20 if side else -20)
    cost = limits(posed(hand, angles))[0]
    assert cost.max().item() == pytest.approx(math.radians(20 - losses.TOLERANCE_DEG) ** 2, rel=1e-4)
    assert (cost > 0).sum() == 1
    where = (3 * finger + max(angle - 1, 0), 0 if angle == 0 else 1)
    assert cost[where] > 0


@pytest.mark.parametrize("joint", range(15))
def test_a_twist_about_the_bone_costs(hand, limits, joint):
    rotations = posed(hand, gestures.GESTURES["open_palm"][None])
    finger = joint // 3
    bone = torch.from_numpy(
        anatomy.joint_axes(anatomy.rest_joints(hand)).twist[finger, joint % 3].astype(np.float64)
    )
    at = limits.order[finger, joint % 3]
    rotations[0, at] = rotations[0, at] @ roma.rotvec_to_rotmat(math.radians(30) * bone)
    cost = limits(rotations)[0]
    # Part of it is not twist: the bone is not exactly perpendicular to its bending axis.
    assert cost[joint].sum() > math.radians(20) ** 2
    assert cost.sum() == cost[joint].sum()


def test_joint_limits_have_the_slopes_of_finite_differences(limits):
    rotvecs = (0.8 * random(2, 16, 3)).requires_grad_()
    assert gradcheck(lambda r: limits(roma.rotvec_to_rotmat(r)), rotvecs)


def test_joint_limits_have_finite_gradients_at_rest_and_in_a_locked_gimbal(hand):
    limits = losses.JointLimits(hand)
    rotations = torch.eye(3).repeat(5, 16, 1, 1)
    angles = np.repeat(anatomy.joint_axes(anatomy.rest_joints(hand)).rest_angles[None], 4, 0)
    angles[:, 0, 1] = [89.9, 90.0, 90.001, 180.0]  # where the thumb's spread and twist coincide
    rotations[1:] = posed(hand, angles).float()
    rotations.requires_grad_()
    cost = limits(rotations)
    cost.sum().backward()
    assert cost.isfinite().all()
    assert rotations.grad.isfinite().all()
    assert rotations.grad.abs().max() < 100


def test_joint_limits_have_finite_gradients_where_a_gimbal_is_locked_to_the_last_bit(hand):
    limits = losses.JointLimits(hand)
    limits.outer, limits.inner = torch.eye(3).expand(5, 3, 3, 3), torch.eye(3).expand(5, 3, 3, 3)
    quarter_rotation = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    rotations = quarter_rotation.repeat(1, 16, 1, 1).requires_grad_()
    limits(rotations).sum().backward()
    assert rotations.grad.isfinite().all()


def test_following_the_gradient_brings_a_broken_hand_within_the_limits(limits):
    rotvecs = (0.7 * random(8, 16, 3)).requires_grad_()
    optimizer = torch.optim.Adam([rotvecs], 0.05)
    first = limits(roma.rotvec_to_rotmat(rotvecs)).sum().item()
    for _ in range(150):
        optimizer.zero_grad()
        cost = limits(roma.rotvec_to_rotmat(rotvecs)).sum()
        cost.backward()
        optimizer.step()
    assert first > 1
    assert cost.item() < 1e-3 * first


def test_joint_limits_enter_no_checkpoint(limits):
    assert not limits.state_dict()
    assert not list(limits.parameters())


@given(x=st.floats(-1.4, 1.4), y=st.floats(-1.4, 1.4))
def test_the_best_map_of_a_landmark_has_its_mean_at_the_joint(x, y):
    width, height = 6, 4
    logits = torch.zeros(1, 1, height, width, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[[x, y]]], dtype=torch.float64)
    log_share = logits.flatten(2).log_softmax(-1).view_as(logits)
    (slope,) = torch.autograd.grad(losses.landmarks_loss(log_share, target, torch.zeros(1, 1)).sum(), logits)
    # The gradient of a cross-entropy is the map minus the best map; this map is uniform.
    best = 1 / (width * height) - slope[0, 0].numpy()
    across, down = (2 * np.arange(n) + 1.0 for n in (width, height))
    mean = (best.sum(0) @ (across / width - 1), best.sum(1) @ (down / height - 1))
    edge = np.array([1 - 1 / width, 1 - 1 / height])
    np.testing.assert_allclose(mean, np.clip([x, y], -edge, edge), atol=1e-9)
    assert best.sum() == pytest.approx(1) and (best > 1e-12).sum() <= 4 and best.min() > -1e-12


def test_a_landmarks_loss_is_the_logarithm_of_its_cells_share():
    log_share = torch.randn(2, 21, 3, 5).flatten(2).log_softmax(-1).view(2, 21, 3, 5)
    target = torch.tensor([2 * 3.5 / 5 - 1, 2 * 0.5 / 3 - 1]).expand(2, 21, 2)  # column 3, row 0
    found = losses.landmarks_loss(log_share, target, torch.zeros(2, 21))
    torch.testing.assert_close(found, -log_share[:, :, 0, 3])
    doubted = losses.landmarks_loss(log_share, target, torch.full((2, 21), PRIOR_STD))
    torch.testing.assert_close(doubted, found / 2)


@pytest.mark.parametrize("size", [1, 2])
def test_a_read_out_counts_by_its_square_near_the_joint_and_by_its_distance_far_away(size):
    target = random(2, 21, size)
    way = torch.nn.functional.normalize(random(2, 21, size, seed=1), dim=-1)
    sure = torch.zeros(2, 21, dtype=torch.float64)
    unit = losses.LANDMARK_SCALE

    def loss(distance: float, std: torch.Tensor = sure) -> torch.Tensor:
        return losses.read_out_loss(target + distance * way, target, std)

    torch.testing.assert_close(loss(0.01 * unit), torch.full_like(sure, 0.5e-4), rtol=1e-4, atol=0)
    torch.testing.assert_close(loss(101 * unit) - loss(100 * unit), torch.ones_like(sure), rtol=1e-3, atol=0)
    torch.testing.assert_close(loss(0.3, sure + PRIOR_STD), loss(0.3) / 2)
    points = (target + 0.02 * way).requires_grad_()
    assert gradcheck(lambda x: losses.read_out_loss(x, target, sure), (points,))
    # The gradient is zero at the joint itself, and always finite.
    (slope,) = torch.autograd.grad(losses.read_out_loss(points, points.detach(), sure).sum(), points)
    assert (slope == 0).all()
