"""The grid holds every cell once, and every regime trains for as many steps."""

import pytest

from common.experiments.benefit_regimes import REAL_REGIMES, STRATEGIES, SYNTHETIC_REGIMES, grid, stages

REGIMES = (*REAL_REGIMES, *SYNTHETIC_REGIMES)


@pytest.mark.parametrize("num_steps", [1, 7, 300])
def test_all_regimes_take_the_same_number_of_steps(num_steps):
    assert {regime: sum(steps for _, steps in stages(regime, num_steps)) for regime in REGIMES} == dict.fromkeys(
        REGIMES, num_steps
    )
    with pytest.raises(ValueError, match="regime"):
        stages("both", num_steps)


def test_the_grid_has_every_cell_once_with_baselines_first():
    cells = grid(["probe", "densenet"], REGIMES, STRATEGIES, [1, 5], [100, 50], [0, 1])
    assert len(cells) == len({cell.name for cell in cells}) == 2 * 2 * 2 * (2 + 3 * 4 * 2)
    assert [cell.size for cell in cells] == sorted(cell.size for cell in cells)
    assert cells[0].name == "probe_real_unaugmented_n50_seed0" and cells[1].regime == "real"
    assert cells[2].name == "probe_mixed_variation_r1_n50_seed0"
