"""Trials are done once, each row says what it is of, lists are checked before any work, differences are paired."""

import csv
import json
import multiprocessing
from dataclasses import dataclass

import pytest
import torch
from scipy import stats

from common.errors import SettingsError
from common.experiments.trials import (
    QUICK_WARNING,
    Experiment,
    check_or_write_settings,
    choose_trials,
    holm,
    paired_difference,
    read_trials,
    write_experiment_report,
)
from common.provenance import git_state


@dataclass(frozen=True)
class Trial:
    method: str
    seed: int


def grid(methods, seeds):
    return [Trial(method, seed) for seed in seeds for method in methods]


TRIALS = grid("ab", range(3))


def experiment(folder, do, **describe):
    return Experiment(folder, "grid", {}, do, lambda trial: describe)


def found_in(folder):
    return dict(read_trials(folder / "grid.csv", Trial))


def test_every_trial_is_done_once_and_a_killed_experiment_goes_on(tmp_path):
    done = []

    def do(trial):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(trial)
        return {"value": 1}

    with pytest.raises(KeyboardInterrupt):
        experiment(tmp_path, do).run(TRIALS)
    assert done == TRIALS[:3]
    experiment(tmp_path, lambda trial: {"value": 2}).run(TRIALS)
    assert [found_in(tmp_path)[trial]["value"] for trial in TRIALS] == [1, 1, 1, 2, 2, 2]


def test_a_row_says_what_it_is_of_and_which_code_gave_it_when(tmp_path):
    figures = {"auc": 0.1, "by_class": [0.25, 1], "deep": {"n": 2, "none": None}}
    experiment(tmp_path, lambda trial: figures, start="old").run(TRIALS[:1])
    (row,) = csv.DictReader((tmp_path / "grid.csv").open())
    date, commit = row.pop("date"), row.pop("commit")
    assert row == {
        **{"method": "a", "seed": "0", "start": "old", "auc": "0.1"},
        **{"by_class.0": "0.25", "by_class.1": "1", "deep.n": "2"},
    }
    assert date.startswith("20") and commit.removesuffix("-dirty") == (git_state() or {"commit": ""})["commit"]
    with pytest.raises(SettingsError):  # a row that was made from something else
        experiment(tmp_path, lambda trial: {}, start="new").run(TRIALS)


def run_share(folder, part):
    experiment(folder, lambda trial: {"part": part}).run(grid("abc", range(20)), (part, 2))


def test_processes_share_the_trials_and_lose_no_row(tmp_path):
    experiment(tmp_path, dict)
    processes = [multiprocessing.get_context("fork").Process(target=run_share, args=(tmp_path, n)) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(read_trials(tmp_path / "grid.csv", Trial)) == len(found_in(tmp_path)) == 60
    assert {row["part"] for row in found_in(tmp_path).values()} == {0, 1}


def test_another_experiment_in_the_same_folder_and_a_folder_without_results_are_refused(tmp_path):
    for _ in range(2):
        check_or_write_settings(tmp_path / "a.json", {"num_steps": 5, "size": (1, 2)})
    (tmp_path / "settings.json").write_text('{"num_steps": 5, "size": [1, 2]}')  # as 0.1 wrote it
    check_or_write_settings(tmp_path / "b.json", {"num_steps": 5, "size": (1, 2)})
    for name in ("a.json", "c.json"):
        with pytest.raises(SettingsError):
            check_or_write_settings(tmp_path / name, {"num_steps": 6, "size": (1, 2)})
    with pytest.raises(SettingsError):
        found_in(tmp_path)


@pytest.mark.parametrize("quick", [False, True])
def test_a_report_has_settings_and_provenance_and_says_when_it_means_nothing(tmp_path, quick):
    Experiment(tmp_path, "a", {"quick": quick}, dict)
    report = write_experiment_report(tmp_path, "a", lambda report: f"{report['rows']}\n", torch.device("cpu"), rows=[1])
    assert (tmp_path / "a.md").read_text() == (QUICK_WARNING if quick else "") + "[1]\n"
    assert json.loads((tmp_path / "a.json").read_text()) == report
    assert report["settings"] == {"quick": quick} and report["rows"] == [1]
    assert {"command", "date", "device", "git"} <= report["provenance"].keys()


# ---- which trials ----------------------------------------------------------------------------------------------------

LISTS = {"methods": ["a", "b"], "seeds": (0, 1)}


def chosen(grids=None, forced=None, **lists):
    return choose_trials(grid, {**LISTS, **lists}, {"methods": ("a", "b"), "seeds": 0}, grids, forced)


def written(folder, text):
    (folder / "grids.yaml").write_text(text)
    return folder / "grids.yaml"


@pytest.mark.parametrize(
    "lists",
    [
        *({"methods": given} for given in ("a", ["a", "c"], [1], None)),
        *({"seeds": given} for given in (5, "5", [0.5], [-1], [True], None)),
    ],
)
def test_lists_are_of_known_names_or_whole_numbers(lists):
    with pytest.raises(SettingsError):
        chosen(**lists)


def test_without_a_file_the_lists_are_the_grid():
    assert chosen() == grid("ab", (0, 1)) and chosen(methods=["b"], seeds=[7]) == [Trial("b", 7)]


def test_a_file_is_several_grids_whose_gaps_the_lists_fill_and_whose_trials_come_once(tmp_path):
    path = written(tmp_path, "- {methods: [a]}\n- {seeds: [1, 7]}\n")
    assert chosen(path) == [Trial("a", 0), Trial("a", 1), Trial("b", 1), Trial("a", 7), Trial("b", 7)]
    assert chosen(path, {"seeds": (3,)}) == [Trial("a", 3), Trial("b", 3)], "what is forced holds for all"


@pytest.mark.parametrize(
    "text", ["", "[]", "{seeds: [1]}", "- {seed: [1]}", "- {seeds: 1}", "- {methods: [c]}", "- [", None]
)
def test_a_file_that_makes_no_sense_or_is_not_there_is_refused(tmp_path, text):
    path = tmp_path / "none.yaml" if text is None else written(tmp_path, text)
    with pytest.raises(SettingsError):
        chosen(path)


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_differences_are_paired_by_seed_and_tested_as_scipy_does():
    values, baseline = {0: 0.5, 1: 0.7, 2: 0.65, 9: 1.0}, {0: 0.4, 1: 0.65, 2: 0.5, 8: 0.0}
    found = paired_difference(values, baseline)
    assert found["mean"] == pytest.approx(0.1) and found["n"] == 3
    assert found["p"] == pytest.approx(stats.ttest_rel([0.5, 0.7, 0.65], [0.4, 0.65, 0.5]).pvalue)

    assert paired_difference({0: 0.5}, {0: 0.25})["p"] is None
    assert paired_difference({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5})["p"] is None
    assert paired_difference({0: 0.5}, {1: 0.25})["n"] == 0


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0]) and holm([]) == []
