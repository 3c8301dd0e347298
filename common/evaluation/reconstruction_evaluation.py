"""Evaluation of an autoencoder against bicubic and JPEG on the same images; `ReconstructionEvaluator(...).run()`."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ..distributed import gathered, is_rank_zero, share
from ..io.contact_sheet import reconstruction_rows, save_contact_sheet
from ..metrics import MS_SSIM_MIN_SIZE, ms_ssim, plain, psnr, ssim
from ..networks.dino import DinoEncoder
from ..networks.lpips import LPIPS
from ..progress import ProgressBar, stopwatch
from ..provenance import provenance
from .codec_baselines import bicubic_down_up, jpeg_at_bytes
from .report import (
    Row,
    best_median_worst,
    by_group,
    cell,
    group_table,
    markdown_table,
    mean_sd,
    write_report,
    write_rows,
)

logger = logging.getLogger(__name__)

METHODS = ("autoencoder", "bicubic", "jpeg")
METRICS = {  # name: (heading, decimals)
    "psnr": ("PSNR (dB) ↑", 2),
    "ssim": ("SSIM ↑", 4),
    "ms_ssim": ("MS-SSIM ↑", 4),
    "lpips": ("LPIPS ↓", 4),
    "dino_cosine": ("DINO cosine ↑", 4),
}
TOLERANCE = 1e-3  # how far outside [0, 1] a value may lie before the image is taken for a wrong range
SHEET_CELL = 384  # pixels: longer sides are reduced to this on the contact sheet


@dataclass
class ReconstructionEvaluator:
    """Measure a network's reconstructions, bicubic down-up and JPEG at the latents' size, image by image.

    Writes into output_dir, each file atomically: per_image.csv, metrics.json, table.md, contact_sheet.png. The
    processes of a torchrun job share the batches; the first of them writes.
    """

    # maps [B, 1, H, W] in [0, 1] to a reconstruction of that shape and range (clamped)
    network: nn.Module | Callable[[Tensor], Tensor]
    # yields dicts with "image" [B, 1, H, W] in [0, 1], "image_path" and any columns (B values each), in the order of
    # its map-style data set
    data_loader: DataLoader
    device: torch.device | str  # where network, LPIPS and DINO run
    output_dir: str  # made if absent
    latent_channels: int  # C; JPEG gets the bytes of float16 latents, 2 · C · (H / factor) · (W / factor)
    factor: int = 8  # the autoencoder's spatial reduction, also that of the bicubic baseline
    lpips: LPIPS | None = None  # LPIPS network; None leaves the metric out
    dino: DinoEncoder | None = None  # DINO encoder; None leaves the metric out
    group_by: str | None = "source"  # column whose values get their own rows; None for no groups
    # column → value; headline figures use only images that match all of them, the others get their own rows. None:
    # all images
    headline_filter: Mapping[str, str] | None = None
    num_examples: int = 3  # images each of worst, median and best PSNR on the contact sheet

    def run(self) -> Row:
        """Evaluate all images, write the files, log the table; returns what metrics.json holds.

        Where another process of the job writes, it returns {}.

        Raises:
            ValueError: no images, a batch or reconstruction of the wrong shape or range, a column that is absent, or no
                image that matches headline_filter (after per_image.csv is written).
        """
        elapsed = stopwatch()
        was_training = isinstance(self.network, nn.Module) and self.network.training
        for module in (self.network, self.lpips, self.dino):
            if isinstance(module, nn.Module):
                module.to(self.device).eval()
        try:
            loader: Any = self.data_loader
            options: dict[str, Any] = {"num_workers": loader.num_workers, "collate_fn": loader.collate_fn}
            mine = DataLoader(loader.dataset, batch_sampler=share([*loader.batch_sampler]), **options)
            measured = gathered([self._measure(batch) for batch in ProgressBar(mine, desc="evaluate", unit="batch")])
            rows = [row for batch in measured for row in batch]
            if not rows:
                raise ValueError("evaluation: the data loader yielded no batch; expected one or more. Check its data.")
            if not is_rank_zero():
                return {}
            write_rows(Path(self.output_dir) / "per_image.csv", rows)
            if not any(row["headline"] for row in rows):
                seen = {key: sorted({row[key] for row in rows}) for key in self.headline_filter or {}}
                raise ValueError(
                    f"evaluation: no image matches headline_filter {self.headline_filter}; found values {seen}. "
                    "Correct the filter; the figures of each image are in per_image.csv."
                )
            self._write_examples([row for row in rows if row["method"] == "autoencoder"])
        finally:
            if was_training and isinstance(self.network, nn.Module):
                self.network.train()
        report = self._report(rows)
        write_report(self.output_dir, report, markdown(report), ("metrics.json", "table.md"))
        for entry in report["non_finite"]:
            logger.warning("non-finite %(metric)s of %(method)s, left out of the mean: %(path)s", entry)
        found = len(rows) // len(METHODS), elapsed(), Path(self.output_dir).resolve(), markdown(report)
        logger.info("%d images evaluated in %s: %s\n%s", *found)
        return report

    @torch.inference_mode()
    def _measure(self, batch: Mapping[str, Any]) -> list[Row]:
        """A row for each image of a batch and each method.

        Inference mode covers this alone: in it, a dataset would cache, and `.to(device)` leave, tensors that no later
        training could use.
        """
        image = plain(batch["image"]).to(self.device)
        _check_range("image", image, image.shape)
        columns = self._columns(batch, len(image))
        reconstruction = plain(self.network(image))
        _check_range("reconstruction", reconstruction, image.shape)
        height, width = image.shape[2:]
        budget = 2 * self.latent_channels * (height // self.factor) * (width // self.factor)
        # A NaN in the input becomes 0 for JPEG alone; comparing with the input still gives NaN, which is reported.
        jpeg, sizes = jpeg_at_bytes(image.nan_to_num(), budget)
        outputs = {"autoencoder": reconstruction, "bicubic": bicubic_down_up(image, self.factor), "jpeg": jpeg}
        bytes_of = {"autoencoder": [budget] * len(image), "jpeg": sizes.tolist()}
        cls_token = None if self.dino is None else self.dino(image).cls_token
        values = {method: self._metrics(output, image, cls_token) for method, output in outputs.items()}
        rows = []
        for i in range(len(image)):
            own = {name: column[i] for name, column in columns.items()}
            headline = all(own[name] == value for name, value in (self.headline_filter or {}).items())
            for method in METHODS:
                found = {name: values[method].get(name, [None] * len(image))[i] for name in METRICS}
                size = bytes_of[method][i] if method in bytes_of else None
                rows.append({**own, "headline": headline, "method": method, **found, "bytes": size, "budget": budget})
        return rows

    def _metrics(self, output: Tensor, image: Tensor, cls_token: Tensor | None) -> dict[str, list[float]]:
        """Metric name -> one value for each image; MS-SSIM is absent below its least size."""
        values = {"psnr": psnr(output, image), "ssim": ssim(output, image)}
        if min(image.shape[2:]) >= MS_SSIM_MIN_SIZE:
            values["ms_ssim"] = ms_ssim(output, image)
        if self.lpips is not None:
            values["lpips"] = self.lpips(output, image)
        if self.dino is not None and cls_token is not None:
            values["dino_cosine"] = F.cosine_similarity(self.dino(output).cls_token, cls_token)
        return {name: value.tolist() for name, value in values.items()}

    def _columns(self, batch: Mapping[str, Any], size: int) -> dict[str, list[str]]:
        """The batch's columns as strings, its paths first."""
        columns = {}
        for name, value in batch.items():
            values = value.tolist() if isinstance(value, Tensor) and value.ndim == 1 else value
            if isinstance(values, (list, tuple)) and all(isinstance(v, (str, int, float)) for v in values):
                columns[name] = [str(v) for v in values]
        needed = ["image_path", *([self.group_by] if self.group_by else []), *(self.headline_filter or {})]
        for name in needed:
            if len(columns.get(name, ())) != size:
                raise ValueError(
                    f"evaluation: no column {name!r} with {size} values in the batch; found {sorted(columns)}. "
                    "Have the data list and the data loader keep it, or change group_by / headline_filter."
                )
        paths = columns.pop("image_path")
        return {"path": paths, **{name: values for name, values in columns.items() if len(values) == size}}

    @torch.no_grad()
    def _write_examples(self, rows: Sequence[Row]) -> None:
        """Contact sheet of the headline images with worst, median and best PSNR, which are reconstructed again."""
        sheet, captions = [], []
        scores = [row["psnr"] if row["headline"] else math.nan for row in rows]
        for label, i in reversed(best_median_worst(scores, self.num_examples)):
            image = plain(self.data_loader.dataset[i]["image"])[None].to(self.device)
            both = torch.cat([image, plain(self.network(image))]).cpu().nan_to_num(nan=0.0).clamp(0, 1)
            sheet += reconstruction_rows(both[:1], both[1:])
            group = f", {rows[i][self.group_by]}" if self.group_by else ""
            figures = f"PSNR {rows[i]['psnr']:.1f} dB, SSIM {rows[i]['ssim']:.3f}"
            captions.append(f"{label}: {figures}{group}, {Path(rows[i]['path']).name}")
        if sheet:
            scale = min(1.0, SHEET_CELL / max(side for row in sheet for side in row[0].shape[1:]))
            titles = ["input", "reconstruction", "4x |difference|"]
            save_contact_sheet(sheet, Path(self.output_dir) / "contact_sheet.png", titles, captions, scale)

    def _report(self, rows: Sequence[Row]) -> Row:
        """What metrics.json holds."""
        outside = [row for row in rows if not row["headline"]]
        budgets = [row["budget"] for row in rows]
        jpegs = [row for row in rows if row["method"] == "jpeg"]
        return {
            "headline_filter": dict(self.headline_filter or {}) or None,
            "group_by": self.group_by,
            "headline": self._section([row for row in rows if row["headline"]]),
            "outside_headline": self._section(outside) if outside else None,
            "by_group": by_group((row for row in rows if row["method"] == "autoencoder"), "psnr"),
            "bicubic": {"factor": self.factor},
            "jpeg": {
                "budget_bytes": {"min": min(budgets), "max": max(budgets)},
                "mean_bytes": statistics.fmean(row["bytes"] for row in jpegs),
                "over_budget": [row["path"] for row in jpegs if row["bytes"] > row["budget"]],
            },
            "non_finite": [
                {"path": row["path"], "method": row["method"], "metric": name}
                for row in rows
                for name in METRICS
                if row[name] is not None and not math.isfinite(row[name])
            ],
            "provenance": provenance(torch.device(self.device)),
        }

    def _section(self, rows: Sequence[Row]) -> Row:
        groups: dict[str, list[Row]] = {}
        for row in rows if self.group_by else ():
            groups.setdefault(row[str(self.group_by)] or "(none)", []).append(row)
        return {"overall": summarise(rows), "groups": {name: summarise(groups[name]) for name in sorted(groups)}}


def summarise(rows: Sequence[Row]) -> Row:
    """For each method and metric `mean_sd` over the finite values, and non_finite, how many are not."""
    methods: dict[str, Row] = {method: {} for method in METHODS}
    for method in METHODS:
        for name in METRICS:
            values = [row[name] for row in rows if row["method"] == method and row[name] is not None]
            if values:
                found = mean_sd(values)
                methods[method][name] = {**found, "non_finite": len(values) - found["n"]}
    return {"n": len(rows) // len(METHODS), "methods": methods}


def markdown(report: Mapping[str, Any]) -> str:
    """The table of metrics.json: group × method, mean ± sd over images."""
    names = [name for name in METRICS if name in report["headline"]["overall"]["methods"]["autoencoder"]]
    budget = report["jpeg"]["budget_bytes"]
    size = f"{budget['min']}" if budget["min"] == budget["max"] else f"{budget['min']} to {budget['max']}"
    labels = {"autoencoder": "autoencoder", "bicubic": f"bicubic {report['bicubic']['factor']}×"}
    labels["jpeg"] = f"JPEG ≤ {size} B"
    condition = ", ".join(f"{key} = {value}" for key, value in (report["headline_filter"] or {}).items())
    lines = []
    for section, suffix in ((report["headline"], ""), (report["outside_headline"], f" (not {condition})")):
        for group, summary in {"overall": section["overall"], **section["groups"]}.items() if section else ():
            for method, label in labels.items():
                cells = [_cell(summary["methods"][method].get(name), METRICS[name][1]) for name in names]
                lines.append([group + suffix, str(summary["n"]), label, *cells])
    headings = ["group", "n", "method", *(METRICS[name][0] for name in names)]
    note = f" Rows without a remark: images with {condition} only." if condition else ""
    groups = group_table(report.get("by_group"), "PSNR (dB) ↑ of all images", 2)
    return markdown_table(headings, lines, "lrlr") + f"\nMean ± sd over images.{note}\n{groups}"


def _cell(value: Row | None, decimals: int) -> str:
    lost = f" ({value['non_finite']} non-finite)" if value and value["non_finite"] else ""
    return cell(value, decimals, missing="–") + lost


def _check_range(what: str, image: Tensor, shape: Sequence[int]) -> None:
    if image.ndim != 4 or image.shape[1] != 1 or image.shape != shape:
        raise ValueError(f"evaluation: found {what} {tuple(image.shape)}; expected {tuple(shape)} as [B, 1, H, W].")
    low, high = float(image.nan_to_num().min()), float(image.nan_to_num().max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise ValueError(
            f"evaluation: found {what} values from {low:.3f} to {high:.3f}; expected [0, 1]. "
            "Scale (and clamp) it first: common.intensity maps signed values."
        )
