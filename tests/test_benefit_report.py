"""The report of the experiment: means, paired differences, corrected p, table and plots."""

import pytest
import torch

from common.experiments.benefit_report import STEM, markdown, plot_series, rows, write_report
from common.experiments.benefit_trials import grid
from common.experiments.trials import Experiment

SETTINGS = {"classes": ["a", "b"], "num_test_images": 9, "num_test_patients": 8, "quick": True}
REGIMES = ["real_unaugmented", "real", "mixed"]


def auc(trial):
    gain = {"real": 0.0, "real_unaugmented": -0.05, "mixed": 0.02 * trial.ratio}[trial.regime]
    return 0.7 + gain + 0.01 * trial.seed + (0.001 * trial.seed**2 if trial.regime == "mixed" else 0.0)


def results():
    trials = grid(["probe", "densenet"], REGIMES, ["variation", "unlabelled"], [1, 5], [50, 100], [0, 1, 2])
    trials = [trial for trial in trials if not (trial.size == 100 and trial.ratio == 5)]
    pseudo = {"unlabelled": {"pseudo_label_accuracy": 0.9}}
    return [(trial, {"auc": auc(trial), **pseudo.get(trial.strategy, {})}) for trial in trials]


def test_differences_are_paired_by_seed_with_the_baseline_of_classifier_and_size():
    found = rows(results())
    row = next(r for r in found if (r["classifier"], r["regime"], r["ratio"], r["size"]) == ("probe", "mixed", 5, 50))
    assert row["gain"]["mean"] == pytest.approx(0.1 + 0.005 / 3) and row["gain"]["n"] == 3
    assert row["gain"]["p"] < row["gain"]["p_holm"] < 0.01
    baseline = next(r for r in found if r["regime"] == "real")
    assert "gain" not in baseline and baseline["mean"] == pytest.approx(0.71)
    pseudo = [r["pseudo_label_accuracy"]["mean"] for r in found if r["strategy"] == "unlabelled"]
    assert pseudo == pytest.approx([0.9] * 6)


def test_the_gain_at_equal_epochs_is_told_apart_into_steps_and_images(tmp_path):
    values = {"real": 0.7, "real_longer": 0.76, "mixed_epochs": 0.78, "mixed": 0.69}
    trials = grid(["densenet"], list(values), ["variation"], [1, 10], [50], [0, 1])
    found = rows([(trial, {"auc": values[trial.regime] + 0.01 * trial.seed}) for trial in trials])
    assert all(row["gain_of_images"]["mean"] == pytest.approx(0.02) for row in found if row["regime"] == "mixed_epochs")
    text = markdown({"settings": SETTINGS, "rows": found})
    assert "| real + variation 1:10, equal epochs | 50 | +0.080 ± 0.000 | +0.060 ± 0.000 | +0.020 ± 0.000 |" in text
    Experiment(tmp_path, STEM, SETTINGS, lambda trial: {"auc": values[trial.regime]}).run(trials)
    write_report(tmp_path, torch.device("cpu"))
    assert (tmp_path / "synthetic_benefit_protocols.png").stat().st_size > 1000


def test_the_rare_class_is_compared_with_itself():
    values = {"rare": 0.6, "rare_repeated": 0.62, "rare_mixed": 0.65}
    trials = grid(["densenet"], list(values), ["variation", "prior"], [10], [50], [0])
    found = {
        row["regime"]: row.get("gain") for row in rows([(trial, {"auc": values[trial.regime]}) for trial in trials])
    }
    assert found["rare"] is None
    assert [found[name]["mean"] for name in ("rare_repeated", "rare_mixed")] == pytest.approx([0.02, 0.05])


def test_the_plot_takes_the_largest_ratio_that_all_sizes_have():
    series = plot_series(rows(results()), "probe")
    assert list(series)[:2] == ["real only, no augmentation", "real only (baseline)"]
    assert [x for x, _, _ in series["real + variation 1:1"]] == [50, 100]


def test_seeds_that_are_missing_show_in_the_number_and_are_left_out_of_differences():
    trials = [(trial, result) for trial, result in results() if trial.seed == 0 or trial.regime == "real"]
    text = markdown({"settings": SETTINGS, "rows": rows(trials)})
    assert "| real + variation 1:1 | 0.720, n = 1 (+0.020) |" in text
    trials = [(trial, result) for trial, result in results() if not (trial.regime == "real" and trial.seed == 2)]
    row = next(row for row in rows(trials) if row["regime"] == "mixed")
    assert row["n"] == 3 and row["gain"]["n"] == 2
