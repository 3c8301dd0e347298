"""Table and plot of a label-efficiency experiment: mean ± sd over seeds, differences paired by seed."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..evaluation.report import Point, Row, cell, markdown_table, mean_sd, write_error_bar_plot
from .label_efficiency import Trial
from .trials import Trials, by_seed, paired_difference, read_trials, write_experiment_report

STEM = "label_efficiency"
BASELINE = "none"
HEADLINE = "mean_pooled_iou"  # mIoU as the segmentation literature has it
LABELS = {
    "none": "random initialisation",
    "ddpm": "DDPM",
    "ddpm_short": "DDPM, steps as the baselines",
    "denoising_autoencoder": "denoising autoencoder",
    "masked_images": "masked images",
}


def write_report(output_dir: str | Path, device: torch.device) -> dict[str, Any]:
    """Write label_efficiency.json, .md and .png of all trials that a folder holds; return the JSON.

    Raises:
        SettingsError: there are none.
    """
    trials = read_trials(Path(output_dir) / f"{STEM}.csv", Trial)
    usual = min(trial.timestep for trial, _ in trials)
    found = rows([(trial, row) for trial, row in trials if trial.timestep == usual])
    report = write_experiment_report(output_dir, STEM, markdown, device, rows=found, timesteps=timestep_rows(trials))
    series: dict[str, list[Point]] = defaultdict(list)
    for row in found:
        series[_label(row["method"])].append((row["label_budget"], 100 * row["mean"], 100 * (row["sd"] or 0.0)))
    titles = "labelled radiographs", "mIoU on held-out images, %"
    write_error_bar_plot(Path(output_dir) / f"{STEM}.png", series, titles)
    return report


def rows(trials: Trials[Trial]) -> list[Row]:
    """One row per method and budget: mIoU mean, sd and n over seeds, by seed, and the gain over `BASELINE`.

    The gain is paired: the mean over the seeds that both have of the difference on the same subset.
    """
    by_row: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    mean_dice: dict[tuple[str, int], list[float]] = defaultdict(list)
    for trial, row in trials:
        by_row[trial.method, trial.label_budget][trial.seed] = row[HEADLINE]
        mean_dice[trial.method, trial.label_budget].append(row["mean_dice"])
    order = {name: place for place, name in enumerate(LABELS)}
    return [
        {
            "method": method,
            "label_budget": budget,
            **mean_sd(by_row[method, budget].values()),
            "by_seed": by_seed(by_row[method, budget]),
            "mean_dice": statistics.fmean(mean_dice[method, budget]),
            "gain": paired_difference(by_row[method, budget], by_row.get((BASELINE, budget), {})),
        }
        for method, budget in sorted(by_row, key=lambda key: (order.get(key[0], len(order)), key))
    ]


def timestep_rows(trials: Trials[Trial]) -> list[Row]:
    """Rows of every method and budget that was trained at several timesteps."""
    by_row: dict[tuple[str, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for trial, row in trials:
        by_row[trial.method, trial.label_budget][trial.timestep].append(row[HEADLINE])
    return [
        {"method": method, "label_budget": budget, "timestep": timestep, **mean_sd(values)}
        for (method, budget), by_timestep in sorted(by_row.items())
        if len(by_timestep) > 1
        for timestep, values in sorted(by_timestep.items())
    ]


def labels_needed(report_rows: Sequence[Row], method: str) -> list[tuple[int, float | None]]:
    """For each budget of a method, how many labels `BASELINE` needs for the same mean mIoU.

    Between budgets interpolated linearly in log(budget); None where no budget of the baseline reaches it.
    """
    baseline = sorted((row["label_budget"], row["mean"]) for row in report_rows if row["method"] == BASELINE)
    own = sorted((row["label_budget"], row["mean"]) for row in report_rows if row["method"] == method)
    return [(budget, _crossing(baseline, value)) for budget, value in own]


def _crossing(baseline: Sequence[tuple[int, float]], value: float) -> float | None:
    for place, (budget, reached) in enumerate(baseline):
        if reached >= value:
            if place == 0:
                return float(budget)
            before, below = baseline[place - 1]
            share = (value - below) / (reached - below)
            return float(before * (budget / before) ** share)
    return None


def markdown(report: Mapping[str, Any]) -> str:
    """The tables: mIoU in percent by method and budget, paired gains, labels needed, timesteps."""
    found = {(row["method"], row["label_budget"]): row for row in report["rows"]}
    methods = list(dict.fromkeys(method for method, _ in found))
    budgets = sorted({budget for _, budget in found})
    headings = ["start", *map(str, budgets)]
    means = [
        [_label(method), *(cell(found.get((method, budget)), 1, factor=100) for budget in budgets)]
        for method in methods
    ]
    gains = [
        [_label(method), *(cell(found.get((method, n), {}).get("gain"), 1, "+", factor=100) for n in budgets)]
        for method in methods
        if method != BASELINE
    ]
    text = "mIoU in %, mean ± sd over seeds, by number of labelled radiographs\n\n" + markdown_table(headings, means)
    text += f"\nDifference to {LABELS[BASELINE]}, in points, paired by seed\n\n" + markdown_table(headings, gains)
    text += f"\nLabels that {LABELS[BASELINE]} needs for what DDPM reaches with n\n\n"
    for budget, needed in labels_needed(report["rows"], "ddpm"):
        text += f"- {budget}: {'more than measured' if needed is None else f'{needed:.1f} ({needed / budget:.1f} ×)'}\n"
    if report["timesteps"]:
        keys = "label_budget", "timestep"
        lines = [
            [_label(row["method"]), *(str(row[key]) for key in keys), cell(row, 1, factor=100)]
            for row in report["timesteps"]
        ]
        headings = ["start", "labels", "timestep", "mIoU"]
        text += "\nmIoU in % by the timestep that the network is told\n\n" + markdown_table(headings, lines)
    return text


def _label(method: str) -> str:
    return LABELS.get(method, method)
