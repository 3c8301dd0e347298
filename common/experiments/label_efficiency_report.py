"""Table and plot of a label-efficiency experiment: mean ± sd over seeds, differences paired by seed."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .error_bar_plot import write_error_bar_plot
from .experiment import read_cells, write_experiment_report
from .label_efficiency import Cell
from .seed_statistics import by_seed, mean_sd, paired_difference, percent

BASELINE = "none"
OWN_BASELINES = {"ddpm_generated": "ddpm"}  # of a method that adds to another one, that one
HEADLINE = "mean_pooled_iou"  # mIoU as the segmentation literature has it
REPORT_STEM = "label_efficiency"
LABELS = {
    "none": "random initialisation",
    "ddpm": "DDPM",
    "ddpm_short": "DDPM, steps as the rivals",
    "denoising_autoencoder": "denoising autoencoder",
    "masked_images": "masked images",
    "pixel_classifier": "classifier on frozen DDPM features",
    "ddpm_generated": "DDPM + generated labels",
}

Values = dict[int, float]  # by seed


def write_report(output_dir: str | Path, device: torch.device) -> dict[str, Any]:
    """Write label_efficiency.json, .md and .png of all cells that a folder holds, atomically; return the JSON.

    Raises:
        NoResultsError: there are none.
    """
    folder = Path(output_dir)
    cells = read_cells(folder, Cell)
    usual = min(cell.timestep for cell, _ in cells)
    report = write_experiment_report(
        folder,
        REPORT_STEM,
        markdown,
        device,
        rows=rows([(cell, result) for cell, result in cells if cell.timestep == usual]),
        timesteps=timestep_rows(cells),
    )
    series: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for row in report["rows"]:
        point = (row["label_budget"], 100 * row["mean"], 100 * (row["sd"] or 0.0))
        series[LABELS.get(row["method"], row["method"])].append(point)
    write_error_bar_plot(
        series, folder / f"{REPORT_STEM}.png", x_title="labelled radiographs", y_title="mIoU on held-out images, %"
    )
    return report


def rows(cells: Sequence[tuple[Cell, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row per method and budget: mIoU mean, sd and n over seeds, by seed, and the gain over `BASELINE`.

    The gain is paired: the mean over the seeds that both have of the difference on the same subset. A method that adds
    something to another one has the gain over that, too: "own_gain".
    """
    by_row: dict[tuple[str, int], Values] = defaultdict(dict)
    dice: dict[tuple[str, int], list[float]] = defaultdict(list)
    for cell, result in cells:
        by_row[cell.method, cell.label_budget][cell.seed] = result[HEADLINE]
        dice[cell.method, cell.label_budget].append(result["mean_dice"])
    order = {name: place for place, name in enumerate(LABELS)}
    found = []
    for method, budget in sorted(by_row, key=lambda key: (order.get(key[0], len(order)), key)):
        values = by_row[method, budget]
        row: dict[str, Any] = {"method": method, "label_budget": budget, **mean_sd(values.values())}
        row["by_seed"] = by_seed(values)
        row["mean_dice"] = statistics.fmean(dice[method, budget])
        baseline = by_row.get((BASELINE, budget), {})
        row["gain"] = paired_difference(values, baseline)
        if method in OWN_BASELINES:
            row["own_gain"] = paired_difference(values, by_row.get((OWN_BASELINES[method], budget), {}))
        found.append(row)
    return found


def timestep_rows(cells: Sequence[tuple[Cell, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The ablation: rows of every method and budget that was trained at several timesteps."""
    by_row: dict[tuple[str, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell, result in cells:
        by_row[cell.method, cell.label_budget][cell.timestep].append(result[HEADLINE])
    return [
        {"method": method, "label_budget": budget, "timestep": timestep, **mean_sd(values)}
        for (method, budget), by_timestep in sorted(by_row.items())
        if len(by_timestep) > 1
        for timestep, values in sorted(by_timestep.items())
    ]


def labels_needed(report_rows: Sequence[Mapping[str, Any]], method: str) -> list[tuple[int, float | None]]:
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
    head = "| start | " + " | ".join(map(str, budgets)) + " |\n|---|" + "---:|" * len(budgets) + "\n"
    text = "mIoU in %, mean ± sd over seeds, by number of labelled radiographs\n\n" + head
    for method in methods:
        text += _line(LABELS.get(method, method), [found.get((method, budget)) for budget in budgets])
    text += f"\nDifference to {LABELS[BASELINE]}, in points, paired by seed\n\n" + head
    for method in methods:
        if method != BASELINE:
            gains = [found.get((method, budget), {}).get("gain") for budget in budgets]
            text += _line(LABELS.get(method, method), gains, "+")
    for method, other in OWN_BASELINES.items():
        if method in methods:
            text += f"\nDifference to {LABELS[other]}, likewise\n\n" + head
            gains = [found.get((method, budget), {}).get("own_gain") for budget in budgets]
            text += _line(LABELS[method], gains, "+")
    text += f"\nLabels that {LABELS[BASELINE]} needs for what DDPM reaches with n\n\n"
    for budget, needed in labels_needed(report["rows"], "ddpm"):
        text += f"- {budget}: {'more than measured' if needed is None else f'{needed:.1f} ({needed / budget:.1f} ×)'}\n"
    if report["timesteps"]:
        text += "\nmIoU in % by the timestep that the network is told\n\n"
        text += "| start | labels | timestep | mIoU |\n|---|---:|---:|---:|\n"
        for row in report["timesteps"]:
            name = LABELS.get(row["method"], row["method"])
            text += f"| {name} | {row['label_budget']} | {row['timestep']} | {percent(row)} |\n"
    return text


def _line(name: str, values: Sequence[Mapping[str, Any] | None], sign: str = "") -> str:
    return f"| {name} | " + " | ".join(percent(value, sign) for value in values) + " |\n"
