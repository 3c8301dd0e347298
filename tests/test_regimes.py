"""The grid holds every trial once, and every regime trains for as many steps."""

import pytest

from common.experiments.benefit_regimes import REGIMES, STRATEGIES, Trial, grid, stages


@pytest.mark.parametrize("num_steps", [1, 7, 300])
def test_all_regimes_take_the_same_number_of_steps(num_steps):
    assert {regime: sum(steps for _, steps in stages(regime, num_steps)) for regime in REGIMES} == dict.fromkeys(
        REGIMES, num_steps
    )
    with pytest.raises(ValueError, match="regime"):
        stages("both", num_steps)


def test_the_grid_has_every_trial_once_with_baselines_first():
    trials = grid(["probe", "densenet"], REGIMES, STRATEGIES, [1, 5], [100, 50], [0, 1])
    assert len(trials) == len(set(trials)) == 2 * 2 * 2 * (2 + 3 * 4 * 2)
    assert [trial.size for trial in trials] == sorted(trial.size for trial in trials)
    assert trials[0] == Trial("probe", "real_unaugmented", "none", 0, 50, 0) and trials[1].regime == "real"
    assert trials[2] == Trial("probe", "mixed", "variation", 1, 50, 0)
