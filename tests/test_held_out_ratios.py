"""p-values of ratios: conformal, of the tail, and of the number of flags."""

import numpy as np
import pytest
from scipy import stats

from common.evaluation.held_out_ratios import HeldOutRatios


def test_count_p_value_takes_the_threshold_for_the_estimate_it_is():
    rng = np.random.default_rng(0)
    ours, binomial = [], []
    for _ in range(400):
        held_out = HeldOutRatios(rng.uniform(size=199), 0.01)
        flagged = held_out.flags(rng.uniform(size=1000))
        ours.append(held_out.count_p_value(flagged, range(1000)))
        binomial.append(stats.binomtest(int(flagged.sum()), 1000, 0.01, alternative="greater").pvalue)
    assert 0.01 < np.mean(np.array(ours) <= 0.05) < 0.08
    assert np.mean(np.array(binomial) <= 0.05) > 0.15  # what it would be with the rate taken for known


def test_tail_p_values_hold_far_below_one_over_n():
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(400):
        held_out = HeldOutRatios(np.exp(-0.2 * rng.exponential(size=300)), 0.005)
        p_values.append(held_out.tail_p_value(np.exp(-0.2 * rng.exponential(size=5000))))
    for level in (1e-2, 1e-3, 1e-4):  # 2 million draws, 200 expected at the last
        assert 0.7 < np.mean(np.concatenate(p_values) <= level) / level < 1.3


def test_tail_withstands_copies_among_the_held_out():
    ratios = np.exp(-0.2 * np.random.default_rng(0).exponential(size=300))
    spoilt = np.sort(ratios)
    spoilt[:4] = 1e-4
    clean, robust = (HeldOutRatios(values, 0.005).tail_p_value(np.array([1e-3]))[0] for values in (ratios, spoilt))
    assert robust < 10 * clean


def test_p_value_is_the_conformal_rank():
    held_out = HeldOutRatios(np.array([0.4, 0.2, 0.8, 0.6]), 0.4)  # rank 2 of 4
    np.testing.assert_allclose(held_out.p_value(np.array([0.1, 0.2, 0.5, 0.9])), np.array([1, 2, 3, 5]) / 5)
    assert held_out.flags(np.array([0.1, 0.2, 0.39, 0.4, 0.5])).tolist() == [True, True, True, False, False]
    assert held_out.threshold == 0.4


def test_samples_of_one_source_count_once():
    held_out = HeldOutRatios(np.linspace(0.1, 1, 399), 0.005)
    flagged = np.array([True] * 20 + [False] * 180)
    alone = held_out.count_p_value(flagged, range(200))
    together = held_out.count_p_value(flagged, [i // 20 for i in range(200)])
    law = stats.betabinom(10, 2, 398)
    assert alone < 1e-6
    assert together == pytest.approx(law.sf(0))
