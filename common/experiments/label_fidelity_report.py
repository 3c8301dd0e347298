"""Table and plot of label fidelity: what judges make of real images, their reconstructions and their variations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .benefit_recipes import VARIATION
from .benefit_report import TITLES
from .error_bar_plot import Point, write_error_bar_plot
from .experiment import read_cells, write_experiment_report
from .label_fidelity import KINDS, ORIGINAL, RECONSTRUCTION, Judge
from .seed_statistics import by_seed, fixed, mean_sd, paired_difference

REPORT_STEM = "label_fidelity"
LABELS = {ORIGINAL: "real images", RECONSTRUCTION: "what the codec makes of them", VARIATION: "a variation of each"}
FIGURES = ("auc", "accuracy", "same_verdict")


def write_report(output_dir: str | Path, device: torch.device) -> dict[str, Any]:
    """Write label_fidelity.json, .md and .png of all judges that a folder holds, atomically; return the JSON.

    Raises:
        NoResultsError: there are none.
    """
    folder = Path(output_dir)
    cells = read_cells(folder, Judge)
    (num_train,) = {result["num_train"] for _, result in cells}
    report = write_experiment_report(folder, REPORT_STEM, markdown, device, rows=rows(cells), num_train=num_train)
    write_error_bar_plot(
        plot_series(report["rows"]),
        folder / f"{REPORT_STEM}.png",
        x_title="what a judge trained on real images is shown",
        y_title="AUC for the label of the source",
        x_labels={2.0**place: LABELS[kind] for place, kind in enumerate(KINDS)},
    )
    return report


def rows(cells: Sequence[tuple[Judge, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row per classifier and kind of image: `mean_sd` over seeds, and the AUC's paired difference to real ones."""
    found: dict[tuple[str, str], dict[int, Mapping[str, float]]] = defaultdict(dict)
    for judge, result in cells:
        for kind, scores in result["kinds"].items():
            found[judge.classifier, kind][judge.seed] = scores
    listed = []
    for classifier in sorted({classifier for classifier, _ in found}, key=list(TITLES).index):
        original = {seed: scores["auc"] for seed, scores in found[classifier, ORIGINAL].items()}
        for kind in KINDS:
            by_judge = found[classifier, kind]
            aucs = {seed: scores["auc"] for seed, scores in by_judge.items()}
            row: dict[str, Any] = {"classifier": classifier, "kind": kind}
            row |= {figure: mean_sd(scores[figure] for scores in by_judge.values()) for figure in FIGURES}
            row["auc_by_seed"] = by_seed(aucs)
            if kind != ORIGINAL:
                row["loss"] = paired_difference(aucs, original)
            listed.append(row)
    return listed


def markdown(report: Mapping[str, Any]) -> str:
    """The table."""
    settings = report["settings"]
    text = (
        f"Judges trained on all {report['num_train']} labelled training images ({', '.join(settings['classes'])}), on "
        f"{settings['num_test_images']} images of {settings['num_test_patients']} held-out patients; in brackets the "
        "difference to the real images.\n\n| judge | shown | AUC | accuracy | same verdict as on the real image |\n"
        "|---|---|---:|---:|---:|\n"
    )
    for row in report["rows"]:
        loss = f" ({row['loss']['mean']:+.3f})" if "loss" in row else ""
        auc, accuracy, same = (fixed(row[figure], 3) for figure in FIGURES)
        text += f"| {TITLES[row['classifier']]} | {LABELS[row['kind']]} | {auc}{loss} | {accuracy} | {same} |\n"
    return text


def plot_series(report_rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """AUC by kind of image for each judge; the plot's axis doubles, so the kinds stand at powers of two."""
    series: dict[str, list[Point]] = defaultdict(list)
    for row in report_rows:
        place = 2.0 ** KINDS.index(row["kind"])
        series[TITLES[row["classifier"]]].append((place, row["auc"]["mean"], row["auc"]["sd"]))
    return dict(series)
