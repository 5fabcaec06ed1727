from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from trainer.keyed_random import Draws, keys


def test_draws_do_not_depend_on_the_batch_they_are_drawn_in():
    both = keys(7, 3, torch.arange(10))
    whole, part = Draws(both), Draws(both[[8, 2]])
    for draw in (lambda d: d.normal(5, 3), lambda d: d.uniform(2), lambda d: d.choice([1, 2, 3])):
        assert torch.equal(draw(whole)[[8, 2]], draw(part))


def test_normal_draws_are_normal_and_independent():
    draws = Draws(keys(1, torch.arange(400)))
    first, second = draws.normal(501), draws.normal(501)
    assert stats.kstest(first.flatten().numpy(), "norm").pvalue > 0.01
    for a, b in ((first, second), (first[1:], first[:-1]), (first[:, :250], first[:, 250:500])):
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.01


def test_uniform_draws_fill_their_range_evenly():
    values = Draws(keys(1, 5, torch.arange(50_000))).uniform(2, low=-2, high=3)
    assert values.shape == (50_000, 2)
    assert stats.kstest(values.flatten().numpy(), "uniform", (-2, 5)).pvalue > 0.01


def test_every_part_of_a_key_counts():
    made = torch.stack([keys(a, b, torch.arange(8)) for a in range(8) for b in range(8)])
    assert len(made.unique()) == 512


def test_choice_follows_its_shares():
    picks = Draws(keys(torch.arange(20_000))).choice([1, 0, 3])
    counts = torch.bincount(picks, minlength=3)
    assert counts[1] == 0
    assert abs(counts[2] / 20_000 - 0.75) < 0.02
