"""Table and plots of the experiment: AUC mean ± sd over seeds, differences paired by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .benefit_regimes import (
    MIXED,
    NO_STRATEGY,
    PRETRAINED,
    REAL,
    REAL_REGIMES,
    STRATEGIES,
    SYNTHETIC,
    SYNTHETIC_REGIMES,
    UNAUGMENTED,
    UNLABELLED,
    Cell,
)
from .error_bar_plot import Point, write_error_bar_plot
from .experiment import read_cells, write_experiment_report
from .seed_statistics import by_seed, fixed, mean_sd, paired_difference

REPORT_STEM = "synthetic_benefit"
SIGNIFICANT = 0.05
TITLES = {
    "probe": "Linear probe on frozen DINO features",
    "densenet": "DenseNet-121 from random weights",
}
REGIME_NAMES = {
    UNAUGMENTED: "real only, no augmentation",
    REAL: "real only (baseline)",
    MIXED: "real + {}",
    SYNTHETIC: "{} only",
    PRETRAINED: "{} first, then real",
}
STRATEGY_NAMES = {UNLABELLED: "unlabelled real images (no generator)"}

Key = tuple[str, str, str, int, int]  # classifier, regime, strategy, ratio, size
Values = dict[int, float]  # by seed


def write_report(output_dir: str | Path, device: torch.device) -> dict[str, Any]:
    """Write synthetic_benefit.json, .md and a .png per classifier of all cells that a folder holds; return the JSON.

    Raises:
        NoResultsError: there are none.
    """
    folder = Path(output_dir)
    found = rows(read_cells(folder, Cell))
    report = write_experiment_report(folder, REPORT_STEM, markdown, device, rows=found)
    for classifier in sorted({row["classifier"] for row in report["rows"]}):
        write_error_bar_plot(
            plot_series(report["rows"], classifier),
            folder / f"{REPORT_STEM}_{classifier}.png",
            x_title="labelled radiographs",
            y_title="AUC on held-out patients",
            title=TITLES.get(classifier, classifier),
        )
    return report


def rows(cells: Sequence[tuple[Cell, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row per classifier, regime, strategy, ratio and size: AUC over seeds and its difference to the baseline.

    "p" of a difference is that of the paired t-test; "p_holm" is corrected for all differences of the same classifier
    and size (Holm 1979), the more honest one where many were tried.
    """
    by_row: dict[Key, Values] = defaultdict(dict)
    pseudo: dict[Key, list[float]] = defaultdict(list)
    for cell, result in cells:
        key = (cell.classifier, cell.regime, cell.strategy, cell.ratio, cell.size)
        by_row[key][cell.seed] = result["auc"]
        if "pseudo_label_accuracy" in result:
            pseudo[key].append(result["pseudo_label_accuracy"])
    found = []
    for key in sorted(by_row, key=_order):
        row: dict[str, Any] = dict(zip(("classifier", "regime", "strategy", "ratio", "size"), key, strict=True))
        row |= mean_sd(by_row[key].values())
        row["by_seed"] = by_seed(by_row[key])
        if row["regime"] != REAL:
            baseline = by_row.get((row["classifier"], REAL, NO_STRATEGY, 0, row["size"]), {})
            row["gain"] = paired_difference(by_row[key], baseline)
        if pseudo[key]:
            row["pseudo_label_accuracy"] = mean_sd(pseudo[key])
        found.append(row)
    _correct(found)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p values for their number."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _correct(found: Sequence[dict[str, Any]]) -> None:
    """Put "p_holm" beside every "p"."""
    families: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in found:
        if "gain" in row:
            row["gain"]["p_holm"] = None
            if row["gain"]["p"] is not None:
                families[row["classifier"], row["size"]].append(row["gain"])
    for gains in families.values():
        for gain, p in zip(gains, holm([gain["p"] for gain in gains]), strict=True):
            gain["p_holm"] = p


def _order(key: Key) -> tuple[Any, ...]:
    classifier, regime, strategy, ratio, size = key
    regimes, strategies = [*REAL_REGIMES, *SYNTHETIC_REGIMES], [NO_STRATEGY, *STRATEGIES]
    return classifier, regimes.index(regime), strategies.index(strategy), ratio, size


def row_name(row: Mapping[str, Any]) -> str:
    """What a row was trained on, in words."""
    strategy = STRATEGY_NAMES.get(row["strategy"], row["strategy"])
    return REGIME_NAMES[row["regime"]].format(f"{strategy} 1:{row['ratio']}")


def markdown(report: Mapping[str, Any]) -> str:
    """A table per classifier: AUC, and the difference to the baseline with its p, by size."""
    settings = report["settings"]
    text = (
        f"Macro AUC of {', '.join(settings['classes'])} on {settings['num_test_images']} images of "
        f"{settings['num_test_patients']} held-out patients, mean ± sd over seeds. In brackets the difference to the "
        "baseline (real only, plain augmentation), paired by seed, with p of the t-test; * where p stays under 0.05 "
        "after Holm's correction for all differences of the column; n is the number of seeds where some are missing.\n"
    )
    usual = max(row["n"] for row in report["rows"])
    for classifier in dict.fromkeys(row["classifier"] for row in report["rows"]):
        own = [row for row in report["rows"] if row["classifier"] == classifier]
        sizes = sorted({row["size"] for row in own})
        text += f"\n{TITLES.get(classifier, classifier)}, labelled images:\n\n"
        text += "| trained on | " + " | ".join(map(str, sizes)) + " |\n|---|" + "---:|" * len(sizes) + "\n"
        by_name: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
        for row in own:
            by_name[row_name(row)][row["size"]] = row
        for name, by_size in by_name.items():
            text += f"| {name} | " + " | ".join(_cell(by_size.get(size), usual) for size in sizes) + " |\n"
    return text


def _cell(row: Mapping[str, Any] | None, usual: int) -> str:
    if row is None:
        return ""
    text = fixed(row, 3)
    if row["n"] != usual:
        text += f", n = {row['n']}"
    gain = row.get("gain")
    if gain is None or gain["mean"] is None:
        return text
    star = "*" if gain["p_holm"] is not None and gain["p_holm"] < SIGNIFICANT else ""
    p = "" if gain["p"] is None else f", p {gain['p']:.2f}" if gain["p"] >= 0.01 else f", p {gain['p']:.1g}"
    return f"{text} ({gain['mean']:+.3f}{star}{p})"


def plot_series(report_rows: Sequence[Mapping[str, Any]], classifier: str) -> dict[str, list[Point]]:
    """AUC over size: both real regimes, mixing by every strategy, and variations alone and first.

    Of several ratios the largest that all sizes of that series have, else the largest.
    """
    own = [row for row in report_rows if row["classifier"] == classifier]
    kinds = [(regime, NO_STRATEGY) for regime in REAL_REGIMES] + [(MIXED, strategy) for strategy in STRATEGIES]
    kinds += [(regime, STRATEGIES[0]) for regime in (SYNTHETIC, PRETRAINED)]
    series: dict[str, list[Point]] = {}
    for kind in kinds:
        found = [row for row in own if (row["regime"], row["strategy"]) == kind]
        if not found:
            continue
        sizes = {row["size"] for row in found}
        by_ratio: dict[int, set[int]] = defaultdict(set)
        for row in found:
            by_ratio[row["ratio"]].add(row["size"])
        ratio = max(by_ratio, key=lambda each: (by_ratio[each] == sizes, each))
        chosen = [row for row in found if row["ratio"] == ratio]
        series[row_name(chosen[0])] = [(row["size"], row["mean"], row["sd"]) for row in chosen]
    return series
