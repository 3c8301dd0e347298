"""Lists are checked before any work, and a file of grids is a union of products."""

import pytest
from test_experiment import Cell

from common.experiments.experiment import ExperimentError
from common.experiments.knobs import check_names, check_numbers, chosen_cells, read_grids

KNOBS = {"methods": ["a", "b"], "seeds": (0, 1)}


def grid(methods, seeds):
    return [Cell(method, seed) for seed in seeds for method in methods]


def cells(path, knobs=KNOBS, **forced):
    found = chosen_cells(path, knobs, grid, {"methods": ["a", "b"]}, {"seeds": 0}, forced)
    return [cell.name for cell in found]


def written(folder, text):
    (folder / "grids.yaml").write_text(text)
    return folder / "grids.yaml"


@pytest.mark.parametrize("given", ["a", ["a", "c"], [1]])
def test_names_must_be_known_and_in_a_list(given):
    check_names("methods", ["b"], ["a", "b"])
    with pytest.raises(ExperimentError, match=r"--methods: found .*; expected a list such as .a., of a, b"):
        check_names("methods", given, ["a", "b"])


@pytest.mark.parametrize("given", [5, "5", [0.5], [-1], [True], None])
def test_numbers_must_be_whole_and_in_a_list(given):
    check_numbers("seeds", (0, 1), 0)
    with pytest.raises(ExperimentError, match=r"--seeds: found .*; expected a list of integers from 0 on"):
        check_numbers("seeds", given, 0)


def test_without_a_file_the_knobs_are_the_grid():
    assert read_grids(None, KNOBS) == [KNOBS]
    assert cells(None) == ["a_seed0", "b_seed0", "a_seed1", "b_seed1"]


def test_a_file_is_several_grids_whose_gaps_the_knobs_fill_and_whose_cells_come_once(tmp_path):
    path = written(tmp_path, "- {methods: [a]}\n- {seeds: [1, 7]}\n")
    assert cells(path) == ["a_seed0", "a_seed1", "b_seed1", "a_seed7", "b_seed7"]
    assert cells(path, seeds=(3,)) == ["a_seed3", "b_seed3"], "what is forced holds for all"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds None; expected a list of mappings of methods, seeds"),
        ("[]", "expected a list of mappings"),
        ("{seeds: [1]}", "expected a list of mappings"),
        ("- {seed: [1]}", "has seed; expected methods, seeds"),
        ("- {seeds: 1}", "--seeds: found 1"),
        ("- {methods: [c]}", "--methods: found"),
        ("- [", "cannot be read"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, text, message):
    with pytest.raises(ExperimentError, match=message):
        cells(written(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ExperimentError, match=r"none\.yaml cannot be read"):
        read_grids(tmp_path / "none.yaml", KNOBS)
