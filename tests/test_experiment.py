import json
from dataclasses import dataclass

import pytest
import torch

from common.experiments.experiment import (
    QUICK_WARNING,
    Experiment,
    ExperimentError,
    NoResultsError,
    read_cells,
    settle,
    write_experiment_report,
)
from common.provenance import git_state


@dataclass(frozen=True)
class Cell:
    method: str
    seed: int

    @property
    def name(self):
        return f"{self.method}_seed{self.seed}"


CELLS = [Cell(method, seed) for seed in range(3) for method in ("a", "b")]


def test_every_cell_is_done_once_and_a_killed_experiment_goes_on(tmp_path):
    done = []

    def do(cell):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(cell)
        return {"value": 1}

    with pytest.raises(KeyboardInterrupt):
        Experiment(tmp_path, {}, do).run(CELLS)
    assert done == CELLS[:3]
    Experiment(tmp_path, {}, lambda cell: {"value": 2}).run(CELLS)
    results = dict(read_cells(tmp_path, Cell))
    assert [results[cell]["value"] for cell in CELLS] == [1, 1, 1, 2, 2, 2]


def test_a_result_says_what_it_is_of_and_which_code_gave_it(tmp_path):
    Experiment(tmp_path, {}, lambda cell: {"value": 1}, lambda cell: {"start": "old"}).run(CELLS[:1])
    found = json.loads((tmp_path / "cells" / "a_seed0.json").read_text())
    git = git_state()
    assert found == {"cell": {"method": "a", "seed": 0}, "start": "old", "git": git, "result": {"value": 1}}


def test_a_result_that_was_made_from_something_else_is_refused(tmp_path):
    Experiment(tmp_path, {}, lambda cell: {}, lambda cell: {"start": "old"}).run(CELLS)
    with pytest.raises(ExperimentError, match="another start than now"):
        Experiment(tmp_path, {}, lambda cell: {}, lambda cell: {"start": "new"}).run(CELLS)


def test_processes_share_the_cells(tmp_path):
    done = []
    for part in range(2):
        Experiment(tmp_path, {}, lambda cell: {"part": part}).run(CELLS, (part, 2))  # noqa: B023
        done.append(len(list((tmp_path / "cells").iterdir())))
    assert done == [3, 6]
    assert [dict(read_cells(tmp_path, Cell))[cell]["part"] for cell in CELLS] == [0, 1, 0, 1, 0, 1]


def test_another_experiment_in_the_same_folder_is_refused(tmp_path):
    settle(tmp_path / "settings.json", {"num_steps": 5})
    with pytest.raises(ExperimentError, match="num_steps 5, now 6"):
        settle(tmp_path / "settings.json", {"num_steps": 6})


def test_a_folder_without_results_says_so(tmp_path):
    with pytest.raises(NoResultsError, match="found no results"):
        read_cells(tmp_path, Cell)


@pytest.mark.parametrize("quick", [False, True])
def test_a_report_has_settings_and_provenance_and_says_when_it_means_nothing(tmp_path, quick):
    Experiment(tmp_path, {"quick": quick}, lambda cell: {}).run(CELLS)
    report = write_experiment_report(
        tmp_path, "found", lambda report: f"{report['rows']}\n", torch.device("cpu"), rows=[1]
    )
    assert (tmp_path / "found.md").read_text() == (QUICK_WARNING if quick else "") + "[1]\n"
    written = json.loads((tmp_path / "found.json").read_text())
    assert written == report
    assert written["settings"] == {"quick": quick} and written["rows"] == [1]
    assert {"command", "date", "device", "git"} <= written["provenance"].keys()
