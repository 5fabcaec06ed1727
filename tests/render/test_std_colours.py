import numpy as np

from annotator.render.std_colours import STOPS, std_colours, std_range


def test_the_scale_covers_96_percent_of_finite_stds():
    stds = np.random.default_rng(0).gamma(4, 2, 10_000)
    low, high = std_range(np.concatenate([stds, [np.nan, np.inf]]).reshape(2, -1))
    assert abs(((stds >= low) & (stds <= high)).mean() - 0.96) < 0.001


def test_noise_does_not_fill_the_scale():
    low, high = std_range(np.array([5.0, 5.01, 5.02]))
    assert high - low == 1 and abs((low + high) / 2 - 5.01) < 1e-9
    assert std_range(np.full(3, np.nan)) == std_range(np.zeros(0)) == (0, 1)


def test_colours_run_through_the_stops_and_an_unknown_std_is_unsure():
    colours = std_colours(np.array([0, 2.5, 5, 7.5, 10, np.nan]), 0, 10)
    np.testing.assert_allclose(colours * 255, [*STOPS, STOPS[-1]], rtol=1e-6)
