"""Table and plots of the benefit of synthetic data: AUC mean ± sd over seeds, differences paired by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..evaluation.report import Point, Row, cell, markdown_table, mean_sd, write_error_bar_plot
from .benefit_trials import (
    ALL_REGIMES,
    BASELINES,
    MIXED,
    MIXED_EPOCHS,
    NO_STRATEGY,
    NUM_RARE,
    PRETRAINED,
    RARE,
    RARE_MIXED,
    RARE_REPEATED,
    REAL,
    REAL_LONGER,
    REAL_REGIMES,
    STRATEGIES,
    SYNTHETIC,
    UNAUGMENTED,
    UNLABELLED,
    Trial,
)
from .trials import Trials, by_seed, grouped, holm, paired_difference, read_trials, write_experiment_report

STEM = "synthetic_benefit"
SIGNIFICANT = 0.05
TITLES = {"probe": "Linear probe on frozen DINO features", "densenet": "DenseNet-121 from random weights"}
REGIME_NAMES = {
    UNAUGMENTED: "real only, no augmentation",
    REAL: "real only (baseline)",
    MIXED: "real + {}",
    SYNTHETIC: "{} only",
    PRETRAINED: "{} first, then real",
    REAL_LONGER: "real only, steps as with 1:{ratio} at equal epochs",
    MIXED_EPOCHS: "real + {}, equal epochs",
    RARE: f"rare class: {NUM_RARE} images (baseline of the next)",
    RARE_REPEATED: f"rare class: {NUM_RARE} images repeated 1:{{ratio}}",
    RARE_MIXED: f"rare class: {NUM_RARE} images + {{}}",
}
STRATEGY_NAMES = {UNLABELLED: "unlabelled real images (no generator)"}
KEYS = ("classifier", "regime", "strategy", "ratio", "size")


def write_report(output_dir: str | Path, device: torch.device | str) -> dict[str, Any]:
    """Write synthetic_benefit.json, .md and a .png per classifier of all trials of a folder; return the JSON."""
    found = rows(read_trials(Path(output_dir) / f"{STEM}.csv", Trial))
    report = write_experiment_report(output_dir, STEM, markdown, device, rows=found)
    for classifier in sorted({row["classifier"] for row in found}):
        path = Path(output_dir) / f"{STEM}_{classifier}.png"
        write_error_bar_plot(path, plot_series(found, classifier), ("labelled radiographs", "AUC on held-out patients"))
    if series := protocol_series(found):
        titles = "synthetic images per real one", "AUC on held-out patients"
        write_error_bar_plot(Path(output_dir) / f"{STEM}_protocols.png", series, titles)
    return report


def rows(trials: Trials[Trial]) -> list[Row]:
    """One row per classifier, regime, strategy, ratio and size: AUC over seeds and its difference to the baseline.

    "p" of a difference is that of the paired t-test; "p_holm" is corrected for all differences of the same classifier
    and size (Holm 1979), the more honest one where many were tried.
    """
    aucs, pseudo = (grouped(trials, KEYS, figure) for figure in ("auc", "pseudo_label_accuracy"))
    found = []
    families: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for key in sorted(aucs, key=_order):
        row: Row = dict(zip(KEYS, key, strict=True))
        row |= {**mean_sd(aucs[key].values()), "by_seed": by_seed(aucs[key])}
        if row["regime"] not in (REAL, RARE):
            baseline = aucs.get(
                (row["classifier"], BASELINES.get(row["regime"], REAL), NO_STRATEGY, 0, row["size"]), {}
            )
            row["gain"] = {**paired_difference(aucs[key], baseline), "p_holm": None}
            families[row["classifier"], row["size"]] += [row["gain"]] if row["gain"]["p"] is not None else []
        if row["regime"] == MIXED_EPOCHS:
            longer = aucs.get((row["classifier"], REAL_LONGER, NO_STRATEGY, row["ratio"], row["size"]), {})
            row["gain_of_images"] = paired_difference(aucs[key], longer)
        if key in pseudo:
            row["pseudo_label_accuracy"] = mean_sd(pseudo[key].values())
        found.append(row)
    for gains in families.values():
        for gain, p in zip(gains, holm([gain["p"] for gain in gains]), strict=True):
            gain["p_holm"] = p
    return found


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    classifier, regime, strategy, ratio, size = key
    return classifier, ALL_REGIMES.index(regime), (NO_STRATEGY, *STRATEGIES).index(strategy), ratio, size


def row_name(row: Row) -> str:
    """What a row was trained on, in words."""
    strategy = STRATEGY_NAMES.get(row["strategy"], row["strategy"])
    return REGIME_NAMES[row["regime"]].format(f"{strategy} 1:{row['ratio']}", ratio=row["ratio"])


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
        by_name: dict[str, dict[int, Row]] = defaultdict(dict)
        for row in own:
            by_name[row_name(row)][row["size"]] = row
        lines = [[name, *(_cell(by_size.get(size), usual) for size in sizes)] for name, by_size in by_name.items()]
        text += f"\n{TITLES.get(classifier, classifier)}, labelled images:\n\n"
        text += markdown_table(["trained on", *map(str, sizes)], lines)
    return text + _shares(report["rows"])


def _shares(report_rows: Sequence[Row]) -> str:
    """Of the gain at equal epochs, what steps are worth and what images are."""
    found = {tuple(row[key] for key in KEYS): row for row in report_rows}
    lines = []
    for row in report_rows:
        if row["regime"] == MIXED_EPOCHS:
            steps = found.get((row["classifier"], REAL_LONGER, NO_STRATEGY, row["ratio"], row["size"]), {})
            gains = row["gain"], steps.get("gain"), row["gain_of_images"]
            lines.append([row_name(row), str(row["size"]), *(cell(gain, 3, "+", missing="–") for gain in gains)])
    if not lines:
        return ""
    headings = ["at equal epochs", "labelled", "gain over real only", "of steps alone", "of images"]
    return "\nThe gain at equal epochs, and what it is made of:\n\n" + markdown_table(headings, lines, "lr")


def _cell(row: Row | None, usual: int) -> str:
    if row is None:
        return ""
    text = cell(row, 3) + ("" if row["n"] == usual else f", n = {row['n']}")
    gain = row.get("gain")
    if gain is None or gain["mean"] is None:
        return text
    star = "*" if gain["p_holm"] is not None and gain["p_holm"] < SIGNIFICANT else ""
    p = "" if gain["p"] is None else f", p {gain['p']:.2f}" if gain["p"] >= 0.01 else f", p {gain['p']:.1g}"
    return f"{text} ({gain['mean']:+.3f}{star}{p})"


def protocol_series(report_rows: Sequence[Row]) -> dict[str, list[Point]]:
    """AUC over ratio at the smallest size with equal epochs: both protocols, with images of a generator and without."""
    kinds = {
        "real only, as many steps": (REAL_LONGER, NO_STRATEGY),
        "real + variation, equal epochs": (MIXED_EPOCHS, STRATEGIES[0]),
        "real + variation, equal steps": (MIXED, STRATEGIES[0]),
    }
    rows_of = [row for row in report_rows if (row["regime"], row["strategy"]) in kinds.values()]
    keys = [(row["size"], row["classifier"]) for row in rows_of if row["regime"] == MIXED_EPOCHS]
    series: dict[str, list[Point]] = {}
    for name, kind in kinds.items() if keys else ():
        own = [row for row in rows_of if ((row["regime"], row["strategy"]) == kind)]
        shown = [row for row in own if (row["size"], row["classifier"]) == min(keys)]
        series |= {name: [(row["ratio"], row["mean"], row["sd"]) for row in shown]} if shown else {}
    return series


def plot_series(report_rows: Sequence[Row], classifier: str) -> dict[str, list[Point]]:
    """AUC over size: both real regimes, mixing by every strategy, and variations alone and first.

    Of several ratios the largest that all sizes of that series have, else the largest.
    """
    kinds = [(regime, NO_STRATEGY) for regime in REAL_REGIMES] + [(MIXED, strategy) for strategy in STRATEGIES]
    kinds += [(regime, STRATEGIES[0]) for regime in (SYNTHETIC, PRETRAINED)]
    series: dict[str, list[Point]] = {}
    for kind in kinds:
        found = [
            row for row in report_rows if (row["classifier"], row["regime"], row["strategy"]) == (classifier, *kind)
        ]
        sizes: dict[int, set[int]] = defaultdict(set)
        for row in found:
            sizes[row["ratio"]].add(row["size"])
        if found:
            ratio = max(sizes, key=lambda each: (sizes[each] == set().union(*sizes.values()), each))
            chosen = [row for row in found if row["ratio"] == ratio]
            series[row_name(chosen[0])] = [(row["size"], row["mean"], row["sd"]) for row in chosen]
    return series
