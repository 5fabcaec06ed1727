"""The smoother of `amvur track` against a dense least-squares solution of the same model, and against simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation
from scipy.stats import norm

from annotator.track import robust
from annotator.track.posterior import posterior_std, scatter_share
from annotator.track.robust import MIN_WEIGHT, local_medians, rotation_weights
from annotator.track.rotation_smoothing import filled, smooth_rotations
from annotator.track.smoother import MEMORY_S, Noise, Observations, fit_noise, mean_step, prior, smooth


def dense(track: Observations, noise: Noise):
    """Mean and variance of every state by one weighted least-squares problem, with no recursion in it."""
    count, channels = track.values.shape
    mean, covariance = prior(track, noise)
    rows, targets = [], []

    def whiten(matrix):
        return np.linalg.inv(np.linalg.cholesky(matrix))

    first = np.zeros((3, 3 * count))
    first[:, :3] = np.eye(3)
    rows.append(whiten(covariance) @ first)
    targets.append(whiten(covariance) @ mean)
    for k in range(1, count):
        dt = track.time_s[k] - track.time_s[k - 1]
        keep = np.exp(-dt / MEMORY_S)
        step = np.zeros((3, 3 * count))
        step[:, 3 * k : 3 * k + 3] = np.eye(3)
        step[:, 3 * k - 3 : 3 * k] = -np.array([[1, dt, 0], [0, 1, 0], [0, 0, keep]])
        grown = np.zeros((3, 3))
        # Integrals of a velocity that is a random walk of density `process`.
        grown[:2, :2] = noise.process * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]])
        grown[2, 2] = 1 - keep**2
        rows.append(whiten(grown) @ step)
        targets.append(np.zeros((3, channels)))
    for k in np.flatnonzero(track.observed):
        look = np.zeros((1, 3 * count))
        look[0, 3 * k] = 1
        look[0, 3 * k + 2] = np.sqrt(noise.lasting * track.variance[k])
        weight = 1 / np.sqrt(noise.own * track.variance[k])
        rows.append(weight * look)
        targets.append(weight * track.values[k][None])
    design, target = np.concatenate(rows), np.concatenate(targets)
    q, r = np.linalg.qr(design)
    state = np.linalg.solve(r, q.T @ target)
    inverse = np.linalg.inv(r)
    return state[::3], np.square(inverse[::3]).sum(1)


@pytest.mark.parametrize("lasting", [0.0, 0.7])
def test_smoothing_is_the_least_squares_solution_of_the_whole_sequence(lasting):
    rng = np.random.default_rng(4)
    time_s = np.cumsum(rng.uniform(0.01, 0.09, 23))  # a variable frame rate
    values = np.cumsum(rng.normal(size=(23, 5)), 0)
    observed = rng.random(23) > 0.3
    observed[[0, 10, 11, 12, 13, 22]] = False  # a gap, and both ends
    track = Observations(time_s, values, rng.uniform(0.1, 4.0, 23), observed)
    noise = Noise(40.0, 0.6, lasting)
    found = smooth(track, noise)
    mean, variance = dense(track, noise)
    np.testing.assert_allclose(found.position, mean, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-6)


def test_unobserved_values_change_nothing_and_an_unsure_frame_gives_way():
    time_s = np.arange(9) / 30
    values = np.linspace(0, 8, 9)[:, None].repeat(2, 1)
    observed = np.ones(9, bool)
    observed[4] = False
    wrong = values.copy()
    wrong[4] = 1e3
    noise = Noise(1.0, 1.0, 0.2)
    kept = smooth(Observations(time_s, values, np.ones(9), observed), noise)
    assert np.array_equal(
        smooth(Observations(time_s, wrong, np.ones(9), observed), noise).position, kept.position
    )
    wrong[4] = 14.0
    unsure = np.ones(9)
    unsure[4] = 1e4
    pulled = smooth(Observations(time_s, wrong, np.ones(9), np.ones(9, bool)), noise).position[4, 0]
    given_way = smooth(Observations(time_s, wrong, unsure, np.ones(9, bool)), noise).position[4, 0]
    assert abs(given_way - 4) < 0.02 < 0.3 < abs(pulled - 4)


def test_noise_is_fitted_to_what_it_was():
    rng = np.random.default_rng(0)
    count, channels, dt = 300, 30, 1 / 30
    variance = rng.uniform(0.3, 3.0, count)
    process, own, lasting = 5.0, 0.02, 0.05
    half = np.linalg.cholesky(process * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]]))
    state, error = np.zeros((2, channels)), rng.normal(size=channels)
    values = []
    for k in range(count):
        state = np.array([[1, dt], [0, 1]]) @ state + half @ rng.normal(size=(2, channels))
        keep = np.exp(-dt / MEMORY_S)
        error = keep * error + np.sqrt(1 - keep**2) * rng.normal(size=channels)
        noise = np.sqrt(own * variance[k]) * rng.normal(size=channels)
        values.append(state[0] + np.sqrt(lasting * variance[k]) * error + noise)
    track = Observations(np.arange(count) * dt, np.array(values), variance, np.ones(count, bool))
    found = fit_noise(track)
    assert found.process == pytest.approx(process, rel=0.4)
    assert found.own == pytest.approx(own, rel=0.25)
    assert found.lasting == pytest.approx(lasting, rel=0.4)


def test_a_few_measurements_are_kept_as_they_are():
    values = np.array([[0.0], [3.0], [-1.0]])
    track = Observations(np.array([0.0, 0.1, 0.2]), values, np.ones(3), np.ones(3, bool))
    found = smooth(track, fit_noise(track))
    assert np.abs(found.position - values).max() < 0.1
    alone = Observations(np.zeros(1), values[:1], np.ones(1), np.ones(1, bool))
    assert mean_step(alone.time_s) == 1
    np.testing.assert_allclose(smooth(alone, fit_noise(alone)).position, values[:1], atol=1e-4)


def test_rotations_about_one_axis_are_smoothed_as_their_angle_is_over_several_circles():
    rng = np.random.default_rng(1)
    time_s = np.arange(80) / 30
    angle = 14 * time_s + 0.05 * rng.normal(size=80)  # six full circles
    axis = np.array([0.48, 0.6, 0.64])
    rotations = Rotation.from_rotvec(angle[:, None] * axis).as_matrix()
    observed = np.ones(80, bool)
    observed[[20, 21, 22, 50]] = False
    rotation = smooth_rotations(time_s, rotations, np.ones(80), observed)
    path = rotation.rotations
    along = smooth(
        Observations(time_s, angle[:, None], 1 / rotation.weight, observed), rotation.noise
    ).position
    expected = Rotation.from_rotvec(along * axis)
    off = (expected.inv() * Rotation.from_matrix(path)).magnitude()
    assert off.max() < 1e-4
    assert np.allclose(np.linalg.det(path), 1, atol=1e-5)


def test_smoothed_rotations_are_nearer_to_the_true_ones():
    rng = np.random.default_rng(2)
    time_s = np.arange(90) / 30
    true = Rotation.from_rotvec(np.stack([np.sin(2 * time_s), 2 * np.cos(1.3 * time_s), time_s], 1))
    seen = true * Rotation.from_rotvec(0.1 * rng.normal(size=(90, 3)))
    path = smooth_rotations(time_s, seen.as_matrix(), np.ones(90), np.ones(90, bool)).rotations
    before = (true.inv() * seen).magnitude().mean()
    assert (true.inv() * Rotation.from_matrix(path)).magnitude().mean() < 0.6 * before


@pytest.mark.parametrize("rate", [0.0, 2.0, 9.0])
def test_hands_rotated_the_wrong_way_for_a_few_frames_leave_the_path_where_it_was(rate):
    rng = np.random.default_rng(3)
    time_s = np.arange(120) / 30
    true = Rotation.from_rotvec(np.stack([np.sin(time_s), rate * time_s, 0 * time_s], 1))
    seen = true * Rotation.from_rotvec(0.1 * rng.normal(size=(120, 3)))
    flips = np.isin(np.arange(120), [0, 20, 21, 22, 47, 60, 61, 63, 90, 92, 94, 118, 119])
    rotated = seen * Rotation.from_rotvec(np.where(flips, np.pi, 0)[:, None] * np.array([[0, 0.6, 0.8]]))

    def error(labels, observed):
        path = smooth_rotations(time_s, labels.as_matrix(), np.ones(120), observed).rotations
        return (true.inv() * Rotation.from_matrix(path)).magnitude()[~flips].mean()

    without = error(seen, ~flips)
    assert error(rotated, np.ones(120, bool)) < 1.25 * without < 0.1


def test_weights_are_probabilities_of_the_likeliest_mixture():
    rng = np.random.default_rng(4)
    variance = rng.uniform(0.5, 2, 400)
    apart = 0.1 * np.sqrt(variance)[:, None] * rng.normal(size=(400, 3))
    apart[:60] = Rotation.random(60, rng=rng).as_rotvec()

    def densities(numbers):
        scale, share = np.exp(numbers[0]), 1 / (1 + np.exp(-numbers[1]))
        right = (1 - share) * norm.pdf(apart, scale=np.sqrt(scale * variance)[:, None]).prod(1)
        return right, share / (8 * np.pi**2) * np.ones(400)  # the volume of all rotations

    best = minimize(lambda x: -np.log(np.add(*densities(x))).sum(), [-4.0, -2.0], method="Nelder-Mead").x
    right, wrong = densities(best)
    found = rotation_weights(apart, variance)
    np.testing.assert_allclose(found, np.maximum(right / (right + wrong), MIN_WEIGHT), atol=0.01)
    assert found[:60].mean() < 0.2 and found[60:].mean() > 0.97
    assert rotation_weights(np.zeros((3, 3)), np.ones(3)) == pytest.approx(np.ones(3))


def test_a_median_of_rotations_has_the_least_sum_of_distances(monkeypatch):
    monkeypatch.setattr(robust, "_SPAN", 99)  # a hand that does not rotate
    rng = np.random.default_rng(5)
    rotations = Rotation.from_rotvec(0.2 * rng.normal(size=(9, 3)))
    rotations = Rotation.concatenate([rotations, Rotation.from_rotvec([[3, 0, 0], [0, 2, 1]])]).as_matrix()
    found = local_medians(np.zeros(11), rotations)[5]

    def total(rotvec):
        return np.linalg.norm(Rotation.from_rotvec(rotvec).as_matrix() - rotations, axis=(1, 2)).sum()

    best = minimize(total, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    assert total(Rotation.from_matrix(found).as_rotvec()) == pytest.approx(best.fun, rel=1e-3)
    np.testing.assert_allclose(local_medians(np.zeros(1), rotations[:1]), rotations[:1], atol=1e-9)


def test_medians_made_in_blocks_are_those_of_the_whole(monkeypatch):
    rng = np.random.default_rng(7)
    time_s, rotations = np.cumsum(rng.uniform(0.01, 0.1, 40)), Rotation.random(40, rng=rng).as_matrix()
    whole = local_medians(time_s, rotations)
    monkeypatch.setattr(robust, "_BLOCK", 7)
    np.testing.assert_allclose(local_medians(time_s, rotations), whole, atol=1e-9)


def test_missing_rotations_lie_on_the_way_between_their_neighbours():
    rotations = Rotation.from_rotvec(np.array([[0, 0, 0], [9, 9, 9], [0, 0, 0.9], [1, 2, 3]])).as_matrix()
    made = filled(np.array([0.0, 1.0, 3.0, 4.0]), rotations, np.array([True, False, True, False]))
    np.testing.assert_allclose(Rotation.from_matrix(made[1]).as_rotvec(), [0, 0, 0.3], atol=1e-6)
    np.testing.assert_allclose(made[3], rotations[2], atol=1e-6)


def test_a_posterior_is_the_predicted_std_where_nothing_scatters_and_smaller_where_much_does():
    time_s = np.arange(20) / 30
    std = np.full((20, 3, 3), 5.0)
    std[:, 0] = 0  # the wrist
    observed = np.ones(20, bool)
    same = posterior_std(time_s, observed, std, 0.0, np.ones(20))
    np.testing.assert_allclose(same, std, rtol=1e-5)
    share = scatter_share(np.full((20, 2, 3), 3.0), std[:, 1:])
    assert share == pytest.approx(9 / 25)
    less = posterior_std(time_s, observed, std, share, np.zeros(20))
    np.testing.assert_allclose(less[:, 1:], 4.0, rtol=1e-5)  # 25 = 9 that scatter, and 16 that last
    assert not less[:, 0].any()


@pytest.mark.parametrize("scatter", [2.0, 4.0, 12.0])
def test_intervals_of_a_posterior_hold_errors_that_are_common_to_all_frames_and_in_part_scatter(scatter):
    """The predicted variance is that of whole errors, except for the last scatter: labels there are worse than it."""
    rng = np.random.default_rng(6)
    time_s, observed, common = np.arange(60) / 30, np.ones(60, bool), 6.0
    std = np.full((60, 21, 3), np.hypot(common, min(scatter, common)))
    errors, stds = [], []
    for _ in range(100):
        bias = common * max(1, scatter / common) * rng.normal(size=(1, 21, 3))
        labels = bias + scatter * rng.normal(size=(60, 21, 3))
        path = labels.mean(0, keepdims=True)  # the best smoother of a hand at rest
        share = scatter_share(labels - path, std)
        errors.append(path[0])
        stds.append(posterior_std(time_s, observed, std, share, np.full(60, 1 / 60))[0])
    inside = np.abs(np.stack(errors)) < np.stack(stds)
    assert inside.mean() == pytest.approx(0.683, abs=0.03)


def test_a_far_gap_has_the_std_of_the_nearest_frames_times_its_growth():
    time_s = np.array([0.0, 0.1, 60.0, 120.0])
    std = np.array([2.0, 2.0, 99.0, 4.0])[:, None, None] * np.ones((4, 1, 3))
    observed = np.array([True, True, False, True])
    made = posterior_std(time_s, observed, std, 0.5, np.array([1.0, 1.0, 7.0, 1.0]))
    assert made[2, 0, 0] == pytest.approx(2 * np.sqrt(0.5 + 0.5 * 7), rel=0.3)
    np.testing.assert_allclose(made[3], 4.0, rtol=1e-5)
