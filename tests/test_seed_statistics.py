import pytest
from scipy import stats

from common.experiments.seed_statistics import by_seed, fixed, mean_sd, paired_difference, percent


def test_mean_and_spread_of_none_one_and_several():
    assert mean_sd([]) == {"mean": None, "sd": None, "n": 0}
    assert mean_sd([0.5]) == {"mean": 0.5, "sd": None, "n": 1}
    assert mean_sd([1.0, 3.0]) == {"mean": 2.0, "sd": pytest.approx(2**0.5), "n": 2}


def test_differences_are_paired_by_seed_and_tested_as_scipy_does():
    values, baseline = {0: 0.5, 1: 0.7, 2: 0.65, 9: 1.0}, {0: 0.4, 1: 0.65, 2: 0.5, 8: 0.0}
    found = paired_difference(values, baseline)
    assert found["mean"] == pytest.approx(0.1) and found["n"] == 3
    assert found["p"] == pytest.approx(stats.ttest_rel([0.5, 0.7, 0.65], [0.4, 0.65, 0.5]).pvalue)


def test_no_p_without_spread():
    assert paired_difference({0: 0.5}, {0: 0.25})["p"] is None
    assert paired_difference({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5})["p"] is None
    assert paired_difference({0: 0.5}, {1: 0.25})["n"] == 0


def test_cells_with_decimals():
    assert fixed(mean_sd([0.5]), 3) == "0.500" and fixed(mean_sd([1.0, 3.0]), 2, "+") == "+2.00 ± 1.41"
    assert fixed(None, 1) == fixed(mean_sd([]), 1) == "" and fixed(mean_sd([1.0, 1.0]), 1) == "1.0 ± 0.0"


def test_percent_cells():
    assert percent(None) == percent(mean_sd([])) == ""
    assert percent(mean_sd([0.123])) == "12.3"
    assert percent(mean_sd([0.1, 0.2]), "+") == "+15.0 ± 7.1"
    assert percent(mean_sd([-0.1]), "+") == "-10.0"


def test_seeds_are_in_order_and_text():
    assert list(by_seed({10: 0.1, 2: 0.2}).items()) == [("2", 0.2), ("10", 0.1)]
