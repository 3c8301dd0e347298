"""What an evaluation says: summaries over images, the markdown table, and the choice of examples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

METHODS = ("autoencoder", "bicubic", "jpeg")
METRICS = {  # name: (heading, decimals)
    "psnr": ("PSNR (dB) ↑", 2),
    "ssim": ("SSIM ↑", 4),
    "ms_ssim": ("MS-SSIM ↑", 4),
    "lpips": ("LPIPS ↓", 4),
    "dino_cosine": ("DINO cosine ↑", 4),
}


@dataclass
class ImageRecord:
    """What was measured on one image: its columns, and for each method the metrics by name (absent = not computed)."""

    path: str
    columns: dict[str, str]
    headline: bool
    jpeg_bytes: int
    budget: int
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


def summarise(records: Sequence[ImageRecord]) -> dict[str, Any]:
    """For each method and metric: mean and sample sd (None for one image) over the n finite values, and non_finite."""
    methods: dict[str, Any] = {}
    for method in METHODS:
        methods[method] = {}
        for name in METRICS:
            values = [r.metrics[method][name] for r in records if name in r.metrics[method]]
            if not values:
                continue
            finite = [value for value in values if math.isfinite(value)]
            methods[method][name] = {
                "mean": statistics.fmean(finite) if finite else None,
                "sd": statistics.stdev(finite) if len(finite) > 1 else None,
                "n": len(finite),
                "non_finite": len(values) - len(finite),
            }
    return {"n": len(records), "methods": methods}


def choose_examples(records: Sequence[ImageRecord], count: int) -> list[tuple[str, int]]:
    """(label, index) of the `count` worst, median and best headline images by autoencoder PSNR, none twice."""
    score = {i: r.metrics["autoencoder"]["psnr"] for i, r in enumerate(records) if r.headline}
    order = sorted((i for i in score if math.isfinite(score[i])), key=lambda i: score[i])
    middle = max(0, (len(order) - count + 1) // 2)
    slices = {"worst": order[:count], "best": order[::-1][:count][::-1], "median": order[middle : middle + count]}
    label_of: dict[int, str] = {}
    for label, indices in slices.items():
        for i in indices:
            label_of.setdefault(i, label)
    return [(label_of[i], i) for i in order if i in label_of]


def markdown_table(report: Mapping[str, Any]) -> str:
    """The table for a README from what `ReconstructionEvaluator.run` returns: group × method, mean ± sd over images."""
    names = [name for name in METRICS if name in report["headline"]["overall"]["methods"]["autoencoder"]]
    budget = report["jpeg"]["budget_bytes"]
    size = f"{budget['min']}" if budget["min"] == budget["max"] else f"{budget['min']} to {budget['max']}"
    bicubic = f"bicubic {report['bicubic']['factor']}×"
    labels = {"autoencoder": "autoencoder", "bicubic": bicubic, "jpeg": f"JPEG ≤ {size} B"}
    lines = ["| group | n | method | " + " | ".join(METRICS[name][0] for name in names) + " |"]
    lines.append("|---|---:|---|" + "---:|" * len(names))
    condition = ", ".join(f"{k} = {v}" for k, v in (report["headline_filter"] or {}).items())
    for section, suffix in ((report["headline"], ""), (report["outside_headline"], f" (not {condition})")):
        for group, summary in {"overall": section["overall"], **section["groups"]}.items() if section else ():
            for method in METHODS:
                cells = [_cell(summary["methods"][method].get(name), METRICS[name][1]) for name in names]
                lines.append(f"| {group}{suffix} | {summary['n']} | {labels[method]} | " + " | ".join(cells) + " |")
    notes = "Mean ± sd over images."
    if condition:
        notes += f" Rows without a remark: images with {condition} only."
    return "\n".join([*lines, "", notes, ""])


def _cell(value: Mapping[str, Any] | None, decimals: int) -> str:
    if value is None or value["mean"] is None:
        return "–" if value is None else f"– ({value['non_finite']} non-finite)"
    text = f"{value['mean']:.{decimals}f}"
    if value["sd"] is not None:
        text += f" ± {value['sd']:.{decimals}f}"
    return text + (f" ({value['non_finite']} non-finite)" if value["non_finite"] else "")
