"""Table and plot of label fidelity: what judges make of real images, their reconstructions and their variations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..evaluation.report import Point, Row, cell, markdown_table, mean_sd, write_error_bar_plot
from .benefit_recipes import VARIATION
from .benefit_report import TITLES
from .label_fidelity import KINDS, ORIGINAL, RECONSTRUCTION, Judge
from .trials import Trials, by_seed, paired_difference, read_trials, write_experiment_report

STEM = "label_fidelity"
LABELS = {ORIGINAL: "real images", RECONSTRUCTION: "what the codec makes of them", VARIATION: "a variation of each"}
FIGURES = ("auc", "accuracy", "same_verdict")


def write_report(output_dir: str | Path, device: torch.device) -> dict[str, Any]:
    """Write label_fidelity.json, .md and .png of all judges that a folder holds; return the JSON.

    Raises:
        SettingsError: there are none.
    """
    trials = read_trials(Path(output_dir) / f"{STEM}.csv", Judge)
    (num_train,) = {figures["num_train"] for _, figures in trials}
    found = rows(trials)
    report = write_experiment_report(output_dir, STEM, markdown, device, rows=found, num_train=num_train)
    series: dict[str, list[Point]] = defaultdict(list)
    for row in found:
        point = (KINDS.index(row["kind"]), row["auc"]["mean"], row["auc"]["sd"])
        series[TITLES[row["classifier"]]].append(point)
    titles = "what a judge trained on real images is shown", "AUC for the label of the source"
    write_error_bar_plot(Path(output_dir) / f"{STEM}.png", series, titles, [LABELS[kind] for kind in KINDS])
    return report


def rows(trials: Trials[Judge]) -> list[Row]:
    """One row per classifier and kind of image: `mean_sd` over seeds, and the AUC's paired difference to real ones."""
    found: dict[str, dict[int, Row]] = defaultdict(dict)
    for judge, figures in trials:
        found[judge.classifier][judge.seed] = figures
    listed = []
    for classifier in sorted(found, key=list(TITLES).index):
        aucs = {kind: {seed: row[f"{kind}.auc"] for seed, row in found[classifier].items()} for kind in KINDS}
        for kind in KINDS:
            row: Row = {"classifier": classifier, "kind": kind}
            for figure in FIGURES:
                row[figure] = mean_sd(figures[f"{kind}.{figure}"] for figures in found[classifier].values())
            row["auc_by_seed"] = by_seed(aucs[kind])
            if kind != ORIGINAL:
                row["loss"] = paired_difference(aucs[kind], aucs[ORIGINAL])
            listed.append(row)
    return listed


def markdown(report: Mapping[str, Any]) -> str:
    """The table."""
    settings, lines = report["settings"], []
    for row in report["rows"]:
        loss = f" ({row['loss']['mean']:+.3f})" if "loss" in row else ""
        auc, accuracy, same = (cell(row[figure], 3) for figure in FIGURES)
        lines.append([TITLES[row["classifier"]], LABELS[row["kind"]], auc + loss, accuracy, same])
    return (
        f"Judges trained on all {report['num_train']} labelled training images ({', '.join(settings['classes'])}), on "
        f"{settings['num_test_images']} images of {settings['num_test_patients']} held-out patients; in brackets the "
        "difference to the real images.\n\n"
    ) + markdown_table(["judge", "shown", "AUC", "accuracy", "same verdict as on the real image"], lines, "llr")
