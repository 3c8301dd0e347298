"""Table, plot, JSON and overlays of a study of zero-shot lungs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluation.report import Row, best_median_worst, cell, markdown_table, mean_sd, write_error_bar_plot
from ..io.contact_sheet import save_contact_sheet
from ..io.mask_files import read_mask
from ..io.segmentation_classes import ClassTable, SegmentationClass
from ..pipelines.folder_segmentation import legend_below, mask_tiles
from .lung_segments import DIFFSEG
from .lung_study import FRAMINGS, LungCase
from .trials import write_experiment_report

STEM = "zero_shot_lungs"
LABELS = {
    DIFFSEG: "DiffSeg, lungs chosen without ground truth",
    "diffseg_picked_by_dice": "DiffSeg, segments picked by Dice (sees the truth)",
    "atlas": "mean chest laid over the image, no segments",
    "kmeans": "k-means on DINO patch tokens, same choice",
    "otsu": "Otsu threshold, same choice",
    "otsu_alone": "Otsu threshold, the two largest dark parts off the border",
    "ellipses": "two ellipses, fitted to these very masks (sees the truth)",
}


def write_report(
    output_dir: str | Path,
    results: Sequence[Row],
    framed: Sequence[Row],
    cases: Sequence[LungCase],
    tuning: Mapping[str, Any],
    device: torch.device | str,
) -> dict[str, Any]:
    """Write zero_shot_lungs.json, .md and .png, which name and show no patient; return the JSON.

    Results are those of the cases, in their order, framed those of the framing drill; tuning says, by what was left
    out, where the hyperparameters come from.
    """
    report = write_experiment_report(
        output_dir,
        STEM,
        markdown,
        device,
        summary=summarise(results, LABELS),
        framings=summarise(framed, FRAMINGS) if framed else {},
        mask_definitions=sorted({f"{case.source}: {case.definition or 'not said'}" for case in cases}),
        mean_segments={m: statistics.fmean(r["segments"][m] for r in results) for m in results[0]["segments"]},
        most_segments=max(result["segments"][DIFFSEG] for result in results),
        tuning=dict(tuning),
    )
    groups = report["summary"]
    series = {
        label: [(place, group[method]["mean"], group[method]["sd"]) for place, group in enumerate(groups.values())]
        for method, label in LABELS.items()
    }
    titles = "held-out radiographs, by source and definition of the masks", "Dice"
    write_error_bar_plot(Path(output_dir) / f"{STEM}.png", series, titles, _headings(groups))
    return report


def summarise(results: Sequence[Row], names: Iterable[str]) -> dict[str, dict[str, Row]]:
    """Mean, sd and n of Dice by group ("all", then each source and definition) and method or framing."""
    groups = {"all": list(results)}
    for name in sorted({result["group"] for result in results}):
        groups[name] = [result for result in results if result["group"] == name]
    return {
        group: {name: mean_sd(member["dice"][name] for member in members) for name in names}
        for group, members in groups.items()
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The tables: a row per method, and one per framing; a column per group."""
    command, date = report["provenance"]["command"], report["provenance"]["date"]
    text = _table("Dice, mean ± sd", report["summary"], LABELS)
    if report["framings"]:
        text += "\n" + _table("Dice, framed otherwise", report["framings"], {name: name for name in FRAMINGS})
    learnt = [f"{a['num_images']} masks of {', '.join(a['sources'])}" for a in report["tuning"].values()]
    left_out = [f" for {name}" if name else "" for name in report["tuning"]]
    return text + (
        f"\nMasks of reference: {'; '.join(report['mask_definitions'])}.\n"
        f"DiffSeg leaves {report['mean_segments'][DIFFSEG]:.0f} segments per image on average, "
        f"{report['most_segments']} at most.\n"
        f"`{command}`, {date[:10]}; learnt from "
        f"{'; '.join(what + name for what, name in zip(learnt, left_out, strict=True))}.\n"
    )


def _table(title: str, groups: Mapping[str, Mapping[str, Row]], labels: Mapping[str, str]) -> str:
    lines = [[label, *(cell(found[name], 3) for found in groups.values())] for name, label in labels.items()]
    return markdown_table([title, *_headings(groups)], lines)


def _headings(groups: Mapping[str, Mapping[str, Row]]) -> list[str]:
    return [f"{group} (n = {next(iter(found.values()))['n']})" for group, found in groups.items()]


def write_overlays(
    path: Path, results: Sequence[Row], cases: Sequence[LungCase], masks: Sequence[Path], count: int = 4
) -> None:
    """Write the contact sheet: image, lungs found, lungs of reference, a row per example. It shows patients."""
    table = ClassTable("lungs", (SegmentationClass("lung", (220, 60, 60), "anatomical structure"),))
    rows, captions = [], []
    scores = [result["dice"][DIFFSEG] for result in results]
    for label, index in best_median_worst(scores, count):
        found = (read_mask(masks[index]) > 0).astype(np.int64)
        pixels = cases[index].pixels()
        rows.append(mask_tiles(pixels, [found, cases[index].truth().astype(np.int64)], table))
        captions.append(f"{label}: Dice {scores[index]:.3f}, {cases[index].name}")
    titles = ["radiograph", "zero-shot", "reference"]
    save_contact_sheet(rows, path, titles, captions, footer=legend_below(table))
