"""What the evaluation of a segmenter says: rows for each image, the choice of examples, the markdown table."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_path
from ..io.segmentation_classes import ClassTable
from .segmentation_metrics import SegmentationScore

_MISSING = "–"
_UNITS = ("mm", "px")


def image_mean(values: np.ndarray) -> float:
    """Mean over the classes that count; NaN where none does."""
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else float("nan")


def image_row(path: str, columns: Mapping[str, str], score: SegmentationScore, classes: ClassTable) -> dict[str, Any]:
    """One image's row of per_image.csv: empty where a class does not count.

    Args:
        path: of the image.
        columns: of the manifest, repeated as they are.
        score: of the image.
        classes: the labels.
    """
    row: dict[str, Any] = {"path": path, **columns}
    row |= {"mean_dice": _cell(image_mean(score.dice)), "mean_iou": _cell(image_mean(score.iou))}
    for index, entry in enumerate(classes.classes):
        row |= {f"{entry.key}_{name}": _cell(getattr(score, name)[index]) for name in ("dice", "iou", "hd95")}
    return row | {"hd95_unit": score.hd95_unit}


def write_image_rows(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write rows of `image_row` as CSV, atomically; returns the path."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def choose_examples(scores: Sequence[SegmentationScore], count: int) -> list[tuple[str, int]]:
    """(label, index) of the `count` best, median and worst images by mean Dice, best first, none twice."""
    dice = [image_mean(score.dice) for score in scores]
    order = sorted((i for i, value in enumerate(dice) if not math.isnan(value)), key=lambda i: -dice[i])
    middle = max(0, (len(order) - count + 1) // 2)
    slices = {
        "worst": order[len(order) - count :] if count < len(order) else order,
        "best": order[:count],
        "median": order[middle : middle + count],
    }
    label_of: dict[int, str] = {}
    for label, indices in slices.items():
        for i in indices if count else ():
            label_of.setdefault(i, label)
    return [(label_of[i], i) for i in order if i in label_of]


def markdown_table(report: Mapping[str, Any]) -> str:
    """The table for a README from `summarise_scores`: a row for each class and their mean; HD95 in the units found."""
    units = [u for u in _UNITS if any(row[f"hd95_{u}"]["n"] for row in report["classes"].values())]
    headings = ["class", "images", "Dice ↑", "IoU ↑", "pooled IoU ↑", *(f"HD95 ({unit}) ↓" for unit in units)]
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    for name, row in report["classes"].items():
        cells = [name, str(row["dice"]["n"]), _mean_sd(row["dice"], 3), _mean_sd(row["iou"], 3)]
        cells += [_number(row["pooled_iou"], 3), *(_mean_sd(row[f"hd95_{unit}"], 1) for unit in units)]
        lines.append("| " + " | ".join(cells) + " |")
    means = [_number(report[name], 3) for name in ("mean_dice", "mean_iou", "mean_pooled_iou")]
    cells = ["mean", str(report["n"]), *means, *("" for _ in units)]
    lines.append("| " + " | ".join(cells) + " |")
    note = (
        "Mean ± sd over the images where the class is in prediction or reference, at their own size; pooled: over all "
        "pixels of all images. HD95 only where the class is in both."
    )
    return "\n".join([*lines, "", note, ""])


def _cell(value: float) -> float | str:
    return "" if math.isnan(value) else float(value)


def _number(value: float | None, decimals: int) -> str:
    return _MISSING if value is None else f"{value:.{decimals}f}"


def _mean_sd(entry: Mapping[str, Any], decimals: int) -> str:
    text = _number(entry["mean"], decimals)
    return text if entry["sd"] is None else f"{text} ± {entry['sd']:.{decimals}f}"
