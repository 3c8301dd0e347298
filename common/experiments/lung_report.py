"""Table, plot, JSON and overlays of a study of zero-shot lungs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..io import read_radiograph
from ..io.contact_sheet import save_contact_sheet
from ..io.mask_files import read_mask
from ..io.segmentation_classes import ClassTable, SegmentationClass
from ..pipelines.mask_sheet import mask_tiles
from .error_bar_plot import Point, write_error_bar_plot
from .experiment import write_experiment_report
from .lung_masks import LungCase
from .seed_statistics import fixed, mean_sd

STEM = "zero_shot_lungs"
HEADLINE = "diffseg"
LABELS = {
    "diffseg": "DiffSeg, lungs chosen without ground truth",
    "diffseg_picked_by_dice": "DiffSeg, segments picked by Dice (sees the truth)",
    "posed_prior": "two ellipses, posed by self-attention, no segments",
    "kmeans": "k-means on DINO patch tokens, same choice",
    "otsu": "Otsu threshold, same choice",
    "prior": "two ellipses alone, the same for all",
}


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Mean, sd and n of Dice by group ("all", then each source) and method."""
    groups = {"all": list(results)}
    for source in sorted({result["source"] for result in results}):
        groups[source] = [result for result in results if result["source"] == source]
    return {
        group: {method: mean_sd([member["dice"][method] for member in members]) for method in LABELS}
        for group, members in groups.items()
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The table: a row per method, a column per group."""
    groups = report["summary"]
    heading = [f"{group} (n = {methods[HEADLINE]['n']})" for group, methods in groups.items()]
    lines = ["| Dice, mean ± sd | " + " | ".join(heading) + " |", "|---|" + "---:|" * len(heading)]
    for method, label in LABELS.items():
        cells = [fixed(methods[method], 3) for methods in groups.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    notes = [f"Masks of reference: {'; '.join(report['mask_definitions'])}."]
    notes.append(f"DiffSeg leaves {report['mean_segments']['diffseg']:.0f} segments per image on average.")
    command, date = report["provenance"]["command"], report["provenance"]["date"]
    notes.append(f"`{command}`, {date[:10]}, tuned on {report['tuning']['num_images']} training images.")
    return "\n".join([*lines, "", *notes, ""])


def write_report(
    output_dir: str | Path,
    results: Sequence[Mapping[str, Any]],
    cases: Sequence[LungCase],
    tuning: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Write zero_shot_lungs.json, .md and .png, which name and show no patient; return the JSON.

    Args:
        output_dir: with the study's settings.
        results: of each case.
        cases: in the same order.
        tuning: where the hyperparameters come from.
        device: that the figures were made on.
    """
    methods = results[0]["segments"]
    report = write_experiment_report(
        output_dir,
        STEM,
        markdown,
        device,
        summary=summarise(results),
        mask_definitions=sorted({f"{case.source}: {case.definition or 'not said'}" for case in cases}),
        mean_segments={name: statistics.fmean(r["segments"][name] for r in results) for name in methods},
        tuning=dict(tuning),
    )
    groups = report["summary"]
    write_error_bar_plot(
        plot_series(groups),
        Path(output_dir) / f"{STEM}.png",
        x_title="held-out radiographs, by source",
        y_title="Dice",
        x_labels={2.0**place: f"{name} (n = {groups[name][HEADLINE]['n']})" for place, name in enumerate(groups)},
    )
    return report


def plot_series(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, list[Point]]:
    """Points of each method; the plot's axis doubles, so the groups stand at powers of two."""
    return {
        label: [
            (2.0**place, group[method]["mean"], group[method]["sd"]) for place, group in enumerate(summary.values())
        ]
        for method, label in LABELS.items()
    }


def examples(results: Sequence[Mapping[str, Any]], count: int) -> list[tuple[str, int]]:
    """(Label, index) of the best, median and worst `count` by Dice of DiffSeg without ground truth, none twice."""
    order = sorted(range(len(results)), key=lambda index: -results[index]["dice"][HEADLINE])
    middle = max(0, (len(order) - count) // 2)
    chosen: dict[int, str] = {}
    for label, part in (("best", order[:count]), ("worst", order[-count:]), ("median", order[middle : middle + count])):
        for index in part:
            chosen.setdefault(index, label)
    return [(chosen[index], index) for index in order if index in chosen]


def write_overlays(
    path: Path, results: Sequence[Mapping[str, Any]], cases: Sequence[LungCase], masks: Sequence[Path], count: int = 4
) -> None:
    """Write the contact sheet: image, lungs found, lungs of reference, a row per example. It shows patients."""
    table = ClassTable("lungs", (SegmentationClass("lung", (220, 60, 60), "anatomical structure"),))
    rows, captions = [], []
    for label, index in examples(results, count):
        pixels = read_radiograph(cases[index].image).pixels
        found = (read_mask(masks[index]) > 0).astype(np.int64)
        rows.append(mask_tiles(pixels, [found, cases[index].truth().astype(np.int64)], table))
        captions.append(f"{label}: Dice {results[index]['dice'][HEADLINE]:.3f}, {cases[index].name}")
    save_contact_sheet(rows, path, ["radiograph", "zero-shot", "reference"], captions)
