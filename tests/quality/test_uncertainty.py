import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.quality import uncertainty
from annotator.quality.calibration import GAUSSIAN_MEAN_ERROR, PowerLaw

FLOATS = st.floats(0, 100, width=16)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=2, max_size=40))
def test_spearman_is_scipys_ties_and_all(pairs):
    std, error = np.array(pairs).T
    found = uncertainty.spearman(std, error)
    if len(set(std)) == 1 or len(set(error)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(scipy.stats.spearmanr(std, error).statistic, abs=1e-12)


def test_mean_error_of_the_kept_by_hand():
    std, error = np.array([3.0, 1, 2, 4]), np.array([5.0, 2, 1, 12])
    np.testing.assert_allclose(uncertainty.mean_error_of_kept(std, error), [2, 1.5, 8 / 3, 5])
    assert uncertainty.error_of_best(std, error) == [2, 1.5, 8 / 3]
    assert uncertainty.error_of_best(std[:1], error[:1]) == [5, 5, 5]


def test_photos_of_equal_std_count_as_any_order_of_them_on_average():
    rng = np.random.default_rng(0)
    std, error = np.array([1.0, 1, 1, 2, 2, 3]), rng.random(6)
    found = uncertainty.mean_error_of_kept(std, error)
    total = np.zeros(6)
    for _ in range(4000):
        order = rng.permutation(6)
        order = order[np.argsort(std[order], kind="stable")]
        total += np.cumsum(error[order]) / np.arange(1, 7)
    np.testing.assert_allclose(found, total / 4000, atol=0.02)
    np.testing.assert_allclose(uncertainty.mean_error_of_kept(np.full(6, 7.0), error), error.mean())


def test_area_of_sparsification_error_by_hand():
    # With one and two kept: 3 and 2 by std, 1 and 2 by error, divided by the mean 2.
    curves = uncertainty.sparsify(np.array([1.0, 2]), np.array([3.0, 1]))
    assert curves.ause == pytest.approx((3 - 1) / 2 / 2)
    assert curves.ause_of_chance == pytest.approx((2 - 1) / 2 / 2)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.1, 100))
def test_sparsification_is_bounded_by_the_oracle_and_has_no_unit(seed, unit):
    rng = np.random.default_rng(seed)
    error = rng.gamma(2, 5, 60) + 1e-3
    std = error * np.exp(rng.normal(size=60))
    curves = uncertainty.sparsify(std, error)
    assert (curves.by_std >= curves.by_error - 1e-9).all()
    assert curves.by_std[-1] == pytest.approx(1) and curves.by_error[-1] == pytest.approx(1)
    assert uncertainty.sparsify(error, error).ause == pytest.approx(0)
    assert uncertainty.sparsify(np.ones(60), error).ause == pytest.approx(curves.ause_of_chance)
    assert uncertainty.sparsify(std / unit, error * unit).ause == pytest.approx(curves.ause)


def test_a_right_gaussian_is_covered_as_promised():
    rng = np.random.default_rng(0)
    std = np.exp(rng.normal(size=(20000, 3)))
    error = rng.normal(size=std.shape) * std
    np.testing.assert_allclose(uncertainty.coverage(std, error), [0.5, 0.68, 0.95], atol=0.006)
    assert uncertainty.coverage(std, error, [0.6827]) == [((np.abs(error) / std) <= 1.00002).mean()]
    bins = uncertainty.reliability(std, error)
    assert bins.count.sum() == 60000 and bins.count.min() > 5900
    np.testing.assert_allclose(bins.observed, bins.std, rtol=0.04)
    wide = uncertainty.reliability(std, error * 3)
    np.testing.assert_allclose(wide.observed, 3 * bins.observed)


def test_empty_input_gives_no_measures():
    none = np.zeros(0)
    assert uncertainty.spearman(none, none) is None
    assert uncertainty.sparsify(none, none) is None
    assert uncertainty.sparsify(np.ones(3), np.zeros(3)) is None
    assert uncertainty.coverage(none, none) is None
    assert len(uncertainty.reliability(none, none).count) == 0


TAILS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "t with 3 degrees": lambda rng, shape: rng.standard_t(3, shape),
    "one in ten fails": lambda rng, shape: (
        rng.normal(size=shape) * np.where(rng.random(shape) < 0.1, 6.0, 1.0)
    ),
}


def photos(seed, tail, count, distortion):
    """Draw std like those of a network, and errors of scale 3 std^distortion, correlated within a photo."""
    rng = np.random.default_rng(seed)
    true_scale = 8 * np.exp(0.6 * rng.normal(size=(count, 1, 1)) + 0.5 * rng.normal(size=(count, 20, 3)))
    error = true_scale * (0.7 * TAILS[tail](rng, (count, 20, 3)) + 0.7 * rng.normal(size=(count, 1, 3)))
    return (true_scale / 3) ** (1 / distortion), error


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("distortion", [0.5, 0.7, 1.0, 1.6])
def test_calibrated_std_covers_68_percent_of_other_photos(tail, distortion):
    law = uncertainty.fit_power_law(*photos(0, tail, 300, distortion))
    assert law.exponent == pytest.approx(distortion, rel=0.1)
    std, error = photos(1, tail, 300, distortion)
    assert uncertainty.coverage(law(std), error)[1] == pytest.approx(0.68, abs=0.02)
    # Coverage is equal for small and large std.
    for bin_ in np.array_split(np.argsort(std.ravel()), 4):
        covered = uncertainty.coverage(law(std).ravel()[bin_], error.ravel()[bin_])
        assert covered[1] == pytest.approx(0.68, abs=0.04)


def test_the_exponent_and_scale_of_a_known_distortion_are_found():
    rng = np.random.default_rng(0)
    std = np.exp(rng.normal(size=40000))
    law = uncertainty.fit_power_law(std, rng.normal(size=40000) * 3 * std**0.7)
    assert (law.scale, law.exponent) == (pytest.approx(3, rel=0.02), pytest.approx(0.7, rel=0.03))


def test_one_std_for_all_is_only_scaled():
    error = np.random.default_rng(0).normal(size=5000) * 12
    law = uncertainty.fit_power_law(np.full(5000, 10.0), error)
    assert law.exponent == 1 and law.scale == pytest.approx(1.2, rel=0.03)


def test_an_inverse_std_becomes_a_constant():
    rng = np.random.default_rng(0)
    std = np.exp(rng.normal(size=5000))
    law = uncertainty.fit_power_law(std, rng.normal(size=5000) / std)
    assert law.exponent == 0
    assert uncertainty.coverage(law(std), rng.normal(size=5000) / std)[1] == pytest.approx(0.68, abs=0.03)


def test_a_few_hopeless_photos_and_unknown_pairs_change_little():
    rng = np.random.default_rng(0)
    std = np.exp(rng.normal(size=20000))
    error = rng.normal(size=20000) * std
    before = uncertainty.fit_power_law(std, error)
    std[:400], error[400:800], std[800:1200] = 0.0, np.nan, np.nan
    error[1200:1400] = 1e6
    after = uncertainty.fit_power_law(std, error)
    assert after.exponent == pytest.approx(before.exponent, abs=0.02)
    assert after.scale == pytest.approx(before.scale, rel=0.03)


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="at least 100"):
        uncertainty.fit_power_law(np.ones(99), np.ones(99))
    with pytest.raises(ValueError, match="nothing to calibrate"):
        uncertainty.fit_power_law(np.ones(200), np.zeros(200))
    fitted = uncertainty.fit_power_law(np.ones(100), np.arange(100.0))
    assert isinstance(fitted, PowerLaw) and fitted.exponent == 1


def drawn_by_axis(seed, count=1500):
    """Draw std (n, 20, 3) and Gaussian errors of scale 3 std^0.7 along x and y, and 5 std^1.2 along z."""
    rng = np.random.default_rng(seed)
    std = np.exp(1 + 0.5 * rng.normal(size=(count, 20, 3)))
    true_scale = np.concatenate([3 * std[..., :2] ** 0.7, 5 * std[..., 2:] ** 1.2], -1)
    return std, rng.normal(size=std.shape) * true_scale


def test_a_known_law_per_axis_is_recovered_with_the_right_coverage():
    std, error = drawn_by_axis(0)
    laws = uncertainty.fit_axis_laws(std, error)
    assert (laws.plane.scale, laws.plane.exponent) == (
        pytest.approx(3, rel=0.03),
        pytest.approx(0.7, rel=0.03),
    )
    assert (laws.depth.scale, laws.depth.exponent) == (
        pytest.approx(5, rel=0.03),
        pytest.approx(1.2, rel=0.03),
    )
    std, error = drawn_by_axis(1)
    for covered in uncertainty.coverage_by_axis(laws(std), error).values():
        assert covered == pytest.approx([0.50, 0.68, 0.95], abs=0.015)
    # One law for all axes has the right overall coverage, but is wrong for each axis.
    pooled = uncertainty.fit_power_law(std, error)(std)
    assert uncertainty.coverage(pooled, error)[1] == pytest.approx(0.68, abs=0.015)
    x, _, z = (covered[1] for covered in uncertainty.coverage_by_axis(pooled, error).values())
    assert x > 0.75 and z < 0.6


def test_coverage_by_axis_and_by_hand_leaves_unknown_coordinates_out():
    std = np.ones((2, 2, 3))
    error = np.array([[[0, 2, np.nan], [-0.5, -3, np.nan]], [[5, 0, np.nan], [np.nan] * 3]])
    assert uncertainty.coverage_by_axis(std, error, [0.68]) == {"x": [2 / 3], "y": [1 / 3], "z": None}
    np.testing.assert_allclose(uncertainty.coverage_by_hand(std, error), [0.5, 0.5])
    assert np.isnan(uncertainty.coverage_by_hand(std[:1], np.full((1, 2, 3), np.nan))).all()


def test_hands_with_independent_errors_are_covered_as_the_binomial_says_and_those_with_one_error_are_not():
    rng = np.random.default_rng(0)
    shape = (4000, 20, 3)
    independent = uncertainty.coverage_by_hand(np.ones(shape), rng.normal(size=shape))
    assert independent.mean() == pytest.approx(0.68, abs=0.005)
    assert independent.std() == pytest.approx(np.sqrt(0.68 * 0.32 / 60), rel=0.05)
    shared = uncertainty.coverage_by_hand(np.ones(shape), rng.normal(size=(4000, 1, 1)) * np.ones(shape))
    assert set(shared) == {0.0, 1.0} and shared.mean() == pytest.approx(0.68, abs=0.03)


def test_mean_error_of_gaussian_hands_is_the_closed_form():
    rng = np.random.default_rng(0)
    scale = np.exp(2 + 0.5 * rng.normal(size=(4000, 1, 1)))
    error = np.linalg.norm(rng.normal(size=(4000, 20, 3)) * scale, axis=-1).mean(1)
    law = uncertainty.fit_mean_error(np.sqrt(3) * scale[:, 0, 0], error)
    assert (law.scale, law.exponent) == (
        pytest.approx(GAUSSIAN_MEAN_ERROR, rel=0.01),
        pytest.approx(1, abs=0.01),
    )


def test_mean_error_is_unbiased_under_heavy_tails_where_coverage_gives_too_little():
    rng = np.random.default_rng(0)
    std = np.exp(3 + 0.4 * rng.normal(size=20000))
    # Errors are about as large as std, but uncertain hands have rare, very large errors.
    hopeless = rng.random(20000) < 0.1 * std / std.mean()
    error = GAUSSIAN_MEAN_ERROR * std * rng.gamma(9, 1 / 9, 20000) * np.where(hopeless, 4, 1)
    law = uncertainty.fit_mean_error(std, error)
    assert law.exponent > 1.05
    assert law(std).sum() == pytest.approx(error.sum()) and (law(std) * np.log(std)).sum() == pytest.approx(
        (error * np.log(std)).sum()
    )
    for share in (0.25, 0.5, 1):
        kept = np.argsort(std)[: int(share * len(std))]
        assert law(std[kept]).mean() == pytest.approx(error[kept].mean(), rel=0.03)
        assert GAUSSIAN_MEAN_ERROR * std[kept].mean() < 0.9 * error[kept].mean()


def test_mean_error_of_one_std_for_all_is_only_scaled_and_of_nothing_is_refused():
    law = uncertainty.fit_mean_error(np.full(50, 10.0), np.linspace(0, 24, 50))
    assert law == PowerLaw(pytest.approx(1.2), 1.0)
    for few in (np.ones(1), np.zeros(0)):
        with pytest.raises(ValueError, match="no errors of hands"):
            uncertainty.fit_mean_error(few, few)
    with pytest.raises(ValueError, match="no errors of hands"):
        uncertainty.fit_mean_error(np.ones(5), np.zeros(5))
