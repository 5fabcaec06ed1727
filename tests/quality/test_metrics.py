import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.spatial
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.stats import mannwhitneyu

from annotator.quality import metrics

SEEDS = st.integers(0, 2**31)


def hands(seed, count=3, points=21):
    """Draw predicted and true points, millimetres, that differ in every respect."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(count, points, 3)) * [60, 40, 20] + [5, -80, 600]
    rotated = Rotation.random(count, random_state=seed).as_matrix()
    noisy = truth + rng.normal(size=truth.shape) * 8
    return noisy @ rotated * rng.uniform(0.3, 3, (count, 1, 1)) + rng.normal(size=(count, 1, 3)) * 200, truth


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_alignment_is_scipys_where_that_is_no_reflection(seed):
    predicted, truth = hands(seed)
    for one, other, found in zip(predicted, truth, metrics.align(predicted, truth), strict=True):
        x, y = one - one.mean(0), other - other.mean(0)
        rotation, _ = scipy.linalg.orthogonal_procrustes(x, y)
        assert np.linalg.det(rotation) > 0
        _, unit_found, disparity = scipy.spatial.procrustes(other, one)
        expected = unit_found * np.linalg.norm(y) + other.mean(0)
        np.testing.assert_allclose(found, expected, atol=1e-8)
        assert np.square(found - other).sum() == pytest.approx(disparity * np.square(y).sum())


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(0.1, 10))
def test_aligned_error_ignores_any_similarity_of_the_prediction(seed, scale):
    predicted, truth = hands(seed)
    rotation = Rotation.random(random_state=seed + 1).as_matrix()
    moved = scale * predicted @ rotation + [10.0, -300.0, 77.0]
    np.testing.assert_allclose(metrics.pa_mpjpe(moved, truth), metrics.pa_mpjpe(predicted, truth), rtol=1e-6)
    np.testing.assert_allclose(metrics.pa_mpjpe(truth @ rotation * scale, truth), 0, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_a_mirror_image_is_not_aligned_away(seed):
    _, truth = hands(seed)
    mirrored = truth * [-1, 1, 1]
    found = metrics.align(mirrored, truth)
    assert metrics.pa_mpjpe(mirrored, truth).min() > 3
    for one, aligned, other in zip(mirrored, found, truth, strict=True):
        x, y = one - one.mean(0), aligned - aligned.mean(0)
        assert np.linalg.det(np.linalg.lstsq(x, y, rcond=None)[0]) > 0
        # No nearby rotation is better: it is the best proper rotation.
        best = np.square(aligned - other).sum()
        for k in range(20):
            nudge = Rotation.from_rotvec(np.random.default_rng(k).normal(size=3) * 0.05).as_matrix()
            assert np.square(y @ nudge + other.mean(0) - other).sum() >= best - 1e-6


def test_points_at_one_position_align_onto_the_middle_of_the_truth():
    _, truth = hands(0)
    found = metrics.align(np.full_like(truth, 7.0), truth)
    np.testing.assert_allclose(found, np.broadcast_to(truth.mean(1, keepdims=True), truth.shape))


def test_root_relative_error_by_hand():
    truth = np.zeros((1, 21, 3))
    truth[0, :, 0] = np.arange(21)
    predicted = truth + [100.0, 0, 0]
    predicted[0, 5] += [0, 3, 4]
    assert metrics.mpjpe(predicted, truth)[0] == pytest.approx(5 / 21)
    errors = metrics.root_relative_distances(predicted, truth, predicted[:, 0], truth[:, 0])
    assert errors[0, 5] == pytest.approx(5) and np.count_nonzero(errors > 1e-9) == 1


def test_wrist_and_scale_alignment_makes_the_bone_to_the_middle_knuckle_as_long_as_the_true_one():
    predicted, truth = hands(3)
    found = metrics.align_wrist_and_scale(predicted, truth)
    np.testing.assert_allclose(found[:, 0], truth[:, 0])
    length = np.linalg.norm(found[:, 9] - found[:, 0], axis=-1)
    np.testing.assert_allclose(length, np.linalg.norm(truth[:, 9] - truth[:, 0], axis=-1))
    # It moves and scales, but does not rotate.
    ratio = (found - found[:, :1]) / (predicted - predicted[:, :1] + 1e-300)
    np.testing.assert_allclose(ratio[:, 1:].std((1, 2)), 0, atol=1e-9)
    assert metrics.distances(metrics.align_wrist_and_scale(truth * 3 + 5, truth), truth).max() < 1e-9


def test_area_under_pck_is_a_naive_sum_of_trapezoids():
    errors = np.random.default_rng(0).gamma(2, 12, 500)
    thresholds = [50 * k / 99 for k in range(100)]
    shares = [sum(error <= threshold for error in errors) / 500 for threshold in thresholds]
    area = sum((a + b) / 2 for a, b in itertools.pairwise(shares)) / 99
    np.testing.assert_allclose(metrics.pck(errors), shares)
    assert metrics.auc_of_pck(errors) == pytest.approx(area)
    assert metrics.auc_of_pck(np.zeros(7)) == pytest.approx(1)
    assert metrics.auc_of_pck(np.full(7, 50.1)) == 0


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.integers(1, 60), st.integers(1, 60))
def test_f_score_is_that_of_a_nearest_neighbour_tree(seed, predicted_count, true_count):
    rng = np.random.default_rng(seed)
    predicted, truth = rng.normal(size=(predicted_count, 3)) * 8, rng.normal(size=(true_count, 3)) * 8
    found = metrics.f_score(predicted[None] + 700, truth[None] + 700, (5.0, 15.0))[0]
    near = scipy.spatial.cKDTree(truth).query(predicted)[0], scipy.spatial.cKDTree(predicted).query(truth)[0]
    for threshold, score in zip((5, 15), found, strict=True):
        precision, recall = (np.mean(each < threshold) for each in near)
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert score == pytest.approx(expected)


def test_area_of_scores_is_mann_whitneys_share_of_ordered_pairs():
    rng = np.random.default_rng(3)
    truth = rng.random(200) < 0.3
    scores = np.round(rng.normal(truth, 1), 1)  # with ties
    expected = mannwhitneyu(scores[truth], scores[~truth]).statistic / truth.sum() / (~truth).sum()
    assert metrics.auc_of_scores(scores, truth) == pytest.approx(expected)
    assert metrics.auc_of_scores(scores, np.ones(200, bool)) is None


def test_f_score_by_hand():
    truth = np.array([[[0.0, 0, 0], [100, 0, 0], [200, 0, 0], [300, 0, 0]]])
    predicted = np.array([[[4.0, 0, 0], [114, 0, 0]]])
    # One of two predicted and one of four true within 5 mm; both of two and two of four within 15 mm.
    np.testing.assert_allclose(metrics.f_score(predicted, truth), [[2 * 0.5 * 0.25 / 0.75, 2 * 0.5 / 1.5]])
    assert metrics.f_score(predicted + 1000, truth).tolist() == [[0, 0]]


def photos(seed=0):
    rng = np.random.default_rng(seed)
    image = scipy.ndimage.gaussian_filter(rng.random((1, 28, 24, 3)), (0, 2, 2, 0)) * 3 % 1
    return np.clip(image + rng.normal(size=image.shape) * 0.1, 0, 1), image


def test_ssim_is_the_usual_one_where_the_region_reaches_beyond_its_window():
    rendered, image = photos()
    region = np.ones((1, 28, 24), bool)

    def mean(values):  # truncated at 5 pixels: a window of 11
        return scipy.ndimage.gaussian_filter(values, (0, 1.5, 1.5, 0), truncate=3.5)

    a, b = mean(rendered), mean(image)
    va, vb, c = mean(rendered**2) - a * a, mean(image**2) - b * b, mean(rendered * image) - a * b
    usual = (2 * a * b + 1e-4) * (2 * c + 9e-4) / ((a * a + b * b + 1e-4) * (va + vb + 9e-4))
    inner = (slice(None), slice(5, -5), slice(5, -5))
    # All pixels are averaged. Border pixels have a smaller window, so take them from a larger photo.
    whole = metrics.ssim(rendered, image, region)[0] * 28 * 24
    without = region.copy()
    without[inner] = False
    assert 0.05 < usual[inner].mean() < 0.95
    border = _ssim_of_pixels(rendered[0], image[0], region[0], np.argwhere(without[0])).sum()
    assert (whole - border) / (18 * 14) == pytest.approx(usual[inner].mean(), abs=1e-4)


def _ssim_of_pixels(rendered, image, region, pixels):
    """Compute SSIM pixel by pixel, with weights in the region only."""
    found = []
    for i, j in pixels:
        total, sums = 0.0, np.zeros((5, 3))
        for di in range(-5, 6):
            for dj in range(-5, 6):
                y, x = i + di, j + dj
                if 0 <= y < region.shape[0] and 0 <= x < region.shape[1] and region[y, x]:
                    weight = math.exp(-(di * di + dj * dj) / (2 * 1.5**2))
                    p, q = rendered[y, x], image[y, x]
                    total += weight
                    sums += weight * np.stack([p, q, p * p, q * q, p * q])
        a, b, aa, bb, ab = sums / total
        value = (2 * a * b + 1e-4) * (2 * (ab - a * b) + 9e-4)
        value /= (a * a + b * b + 1e-4) * (aa - a * a + bb - b * b + 9e-4)
        found.append(value.mean())
    return np.array(found)


def test_texture_is_judged_in_its_region_alone():
    rendered, image = photos(1)
    region = np.zeros((1, 28, 24), bool)
    region[0, 10:24, 8:20] = True
    region[0, 14, 9] = False
    expected = _ssim_of_pixels(rendered[0], image[0], region[0], np.argwhere(region[0])).mean()
    assert metrics.ssim(rendered, image, region)[0] == pytest.approx(expected, abs=1e-5)
    squared = ((rendered - image) ** 2)[region].mean()
    assert metrics.psnr(rendered, image, region)[0] == pytest.approx(-10 * math.log10(squared))
    elsewhere = np.where(region[..., None], rendered, 0.123)
    assert metrics.ssim(elsewhere, image, region) == metrics.ssim(rendered, image, region)
    assert metrics.psnr(elsewhere, image, region) == metrics.psnr(rendered, image, region)


def test_a_perfect_texture_and_an_invisible_one():
    _, image = photos()
    region = np.stack([np.ones((28, 24), bool), np.zeros((28, 24), bool)])
    both = np.concatenate([image, image])
    assert metrics.ssim(both, both, region)[0] == pytest.approx(1)
    assert metrics.psnr(both, both, region)[0] == math.inf
    assert np.isnan(metrics.ssim(both, both, region)[1]) and np.isnan(metrics.psnr(both, both, region)[1])
    halved = metrics.psnr(both * 0 + 0.5, both * 0 + 0.4, region)[0]
    assert halved == pytest.approx(20)  # 0.1 off everywhere
