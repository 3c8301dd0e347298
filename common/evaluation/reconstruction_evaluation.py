"""Evaluation of an autoencoder against bicubic and JPEG on the same images; `ReconstructionEvaluator(...).run()`."""

from __future__ import annotations

import csv
import json
import logging
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..files import atomic_path
from ..io.contact_sheet import reconstruction_rows, save_contact_sheet
from ..metrics import MS_SSIM_MIN_SIZE, lpips, ms_ssim, plain, psnr, ssim, token_cosine
from ..networks.dino import DinoEncoder
from ..networks.lpips import LPIPS
from ..provenance import provenance
from .codec_baselines import bicubic_down_up, jpeg_at_bytes
from .evaluation_report import METRICS, ImageRecord, choose_examples, markdown_table, summarise

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # how far outside [0, 1] a value may lie before the image is taken for a wrong range
SHEET_CELL = 384  # pixels: longer sides are reduced to this on the contact sheet


class ReconstructionEvaluator:
    """Measure a network's reconstructions, bicubic down-up and JPEG at the latents' size, image by image.

    Writes into output_dir, each file atomically: per_image.csv, metrics.json, table.md, contact_sheet.png.

    Args:
        network: maps [B, 1, H, W] in [0, 1] to a reconstruction of that shape and range (clamped).
        data_loader: yields dicts with "image" [B, 1, H, W] in [0, 1], "image_path" and any columns (B values each).
        device: where network, LPIPS and DINO run.
        output_dir: made if absent.
        lpips: LPIPS network; None leaves the metric out.
        dino: DINO encoder; None leaves the metric out.
        group_by: column whose values get their own rows; None for no groups.
        headline_filter: column → value; headline figures use only images that match all of them, the others get their
            own rows. None: all images.
        latent_bytes_per_image: JPEG budget in bytes; give either this or latent_channels.
        latent_channels: C, for the budget of float16 latents: 2 · C · (H / factor) · (W / factor) bytes.
        factor: the autoencoder's spatial reduction, also that of the bicubic baseline.
        num_examples: images each of worst, median and best PSNR on the contact sheet.
        provenance: added to the provenance in metrics.json (checkpoint, data version, ...).
        progress: show a progress bar.

    Raises:
        ValueError: neither or both of latent_bytes_per_image and latent_channels.
    """

    def __init__(
        self,
        network: nn.Module | Callable[[Tensor], Tensor],
        data_loader: Iterable[Mapping[str, Any]],
        device: torch.device | str,
        output_dir: str | Path,
        lpips: LPIPS | None = None,
        dino: DinoEncoder | None = None,
        group_by: str | None = "source",
        headline_filter: Mapping[str, str] | None = None,
        latent_bytes_per_image: int | None = None,
        latent_channels: int | None = None,
        factor: int = 8,
        num_examples: int = 3,
        provenance: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> None:
        if (latent_bytes_per_image is None) == (latent_channels is None):
            raise ValueError(
                f"JPEG budget: found latent_bytes_per_image={latent_bytes_per_image} and "
                f"latent_channels={latent_channels}; expected exactly one of them. Give one and leave the other out."
            )
        self.network, self.data_loader, self.device = network, data_loader, torch.device(device)
        self.output_dir = Path(output_dir)
        self.lpips, self.dino = lpips, dino
        self.group_by, self.headline_filter = group_by, dict(headline_filter or {})
        self.latent_bytes_per_image, self.latent_channels, self.factor = latent_bytes_per_image, latent_channels, factor
        self.num_examples, self.provenance, self.progress = num_examples, dict(provenance or {}), progress

    def run(self) -> dict[str, Any]:
        """Evaluate all images, write the files, log the table; returns what metrics.json holds.

        Raises:
            ValueError: no images, a batch or reconstruction of the wrong shape or range, a column that is absent, or no
                image that matches headline_filter (after per_image.csv is written).
        """
        with tempfile.TemporaryFile() as spool:
            records, shapes = self._measure_all(spool)
            if not records:
                raise ValueError("evaluation: the data loader yielded no batch; expected one or more. Check its data.")
            self._write_csv(records)
            if not any(record.headline for record in records):
                seen = {key: sorted({record.columns[key] for record in records}) for key in self.headline_filter}
                raise ValueError(
                    f"evaluation: no image matches headline_filter {self.headline_filter}; found values {seen}. "
                    "Correct the filter; the figures of each image are in per_image.csv."
                )
            self._write_examples(records, shapes, spool)
        report = self._report(records)
        with atomic_path(self.output_dir / "metrics.json") as temporary:
            text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=str)
            temporary.write_text(text + "\n", encoding="utf-8")
        table = markdown_table(report)
        with atomic_path(self.output_dir / "table.md") as temporary:
            temporary.write_text(table, encoding="utf-8")
        for entry in report["non_finite"]:
            logger.warning("non-finite %(metric)s of %(method)s, left out of the mean: %(path)s", entry)
        logger.info("reconstruction of %d images, files in %s\n%s", len(records), self.output_dir, table)
        return report

    def _measure_all(self, spool: Any) -> tuple[list[ImageRecord], list[tuple[int, ...]]]:
        """Records in the loader's order; input and reconstruction go to the spool file as 8-bit pixels."""
        was_training = isinstance(self.network, nn.Module) and self.network.training
        for module in (self.network, self.lpips, self.dino):
            if isinstance(module, nn.Module):
                module.to(self.device).eval()
        records: list[ImageRecord] = []
        shapes: list[tuple[int, ...]] = []
        try:
            for batch in tqdm(self.data_loader, desc="evaluate", unit="batch", disable=not self.progress):
                image, reconstruction, new = self._measure(batch)
                records += new
                pairs = torch.stack([image, reconstruction], dim=1).nan_to_num(nan=0.0).clamp(0, 1)
                spool.write((pairs * 255).round().to(torch.uint8).cpu().numpy().tobytes())
                shapes += [tuple(image.shape[1:])] * len(new)
        finally:
            if was_training and isinstance(self.network, nn.Module):
                self.network.train()
        return records, shapes

    @torch.inference_mode()
    def _measure(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, list[ImageRecord]]:
        """All methods and metrics on one batch: image, reconstruction, records.

        Inference mode covers this alone: in it, a dataset would cache, and `.to(device)` leave, tensors that no later
        training could use.
        """
        image = plain(batch["image"]).to(self.device)
        _check_range("image", image, image.shape)
        paths, columns = self._columns(batch, len(image))
        reconstruction = plain(self.network(image))
        _check_range("reconstruction", reconstruction, image.shape)
        height, width = image.shape[2:]
        budget = self.latent_bytes_per_image
        if budget is None:
            budget = 2 * (self.latent_channels or 0) * (height // self.factor) * (width // self.factor)
        # A NaN in the input becomes 0 for JPEG alone; comparing with the input still gives NaN, which is reported.
        jpeg, sizes = jpeg_at_bytes(image.nan_to_num(), budget)
        outputs = {"autoencoder": reconstruction, "bicubic": bicubic_down_up(image, self.factor), "jpeg": jpeg}
        reference_cls = None if self.dino is None else self.dino(image).cls_token
        values = {method: self._metrics(output, image, reference_cls) for method, output in outputs.items()}
        records = []
        for i, path in enumerate(paths):
            row = {name: column[i] for name, column in columns.items()}
            headline = all(row[name] == value for name, value in self.headline_filter.items())
            record = ImageRecord(path, row, headline, int(sizes[i]), budget)
            record.metrics = {m: {name: metric[i] for name, metric in v.items()} for m, v in values.items()}
            records.append(record)
        return image, reconstruction, records

    def _metrics(self, output: Tensor, image: Tensor, reference_cls: Tensor | None) -> dict[str, list[float]]:
        """Metric name -> one value for each image; MS-SSIM is absent below its least size."""
        values = {"psnr": psnr(output, image), "ssim": ssim(output, image)}
        if min(image.shape[2:]) >= MS_SSIM_MIN_SIZE:
            values["ms_ssim"] = ms_ssim(output, image)
        if self.lpips is not None:
            values["lpips"] = lpips(self.lpips, output, image)
        if self.dino is not None and reference_cls is not None:
            values["dino_cosine"] = token_cosine(self.dino(output).cls_token, reference_cls)
        return {name: value.tolist() for name, value in values.items()}

    def _columns(self, batch: Mapping[str, Any], size: int) -> tuple[list[str], dict[str, list[str]]]:
        """The batch's paths and its columns as strings."""
        columns = {}
        for name, value in batch.items():
            values = value.tolist() if isinstance(value, Tensor) and value.ndim == 1 else value
            if isinstance(values, (list, tuple)) and all(isinstance(v, (str, int, float)) for v in values):
                columns[name] = [str(v) for v in values]
        needed = ["image_path", *([self.group_by] if self.group_by else []), *self.headline_filter]
        for name in needed:
            if len(columns.get(name, ())) != size:
                raise ValueError(
                    f"evaluation: no column {name!r} with {size} values in the batch; found {sorted(columns)}. "
                    "Have the data list and the data loader keep it, or change group_by / headline_filter."
                )
        return columns.pop("image_path"), {name: values for name, values in columns.items() if len(values) == size}

    def _write_csv(self, records: Sequence[ImageRecord]) -> None:
        """One line for each image and method."""
        names = list(dict.fromkeys(name for record in records for name in record.columns))
        with atomic_path(self.output_dir / "per_image.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["path", *names, "headline", "method", *METRICS, "bytes"])
            writer.writeheader()
            for record in records:
                sizes = {"autoencoder": record.budget, "jpeg": record.jpeg_bytes}
                for method, values in record.metrics.items():
                    row = {"path": record.path, "headline": record.headline, "method": method}
                    writer.writerow({**record.columns, **row, **values, "bytes": sizes.get(method, "")})

    def _write_examples(self, records: Sequence[ImageRecord], shapes: Sequence[tuple[int, ...]], spool: Any) -> None:
        """Contact sheet of the headline images with worst, median and best PSNR of the autoencoder."""
        offsets = np.cumsum([0, *(2 * math.prod(shape) for shape in shapes)])
        rows, captions = [], []
        for label, i in choose_examples(records, self.num_examples):
            spool.seek(int(offsets[i]))
            pixels = np.frombuffer(spool.read(2 * math.prod(shapes[i])), np.uint8).reshape(2, 1, *shapes[i])
            image, reconstruction = torch.from_numpy(pixels.astype(np.float32) / 255)
            rows += reconstruction_rows(image, reconstruction)
            group = f", {records[i].columns[self.group_by]}" if self.group_by else ""
            value = records[i].metrics["autoencoder"]
            name = Path(records[i].path).name
            captions.append(f"{label}: PSNR {value['psnr']:.1f} dB, SSIM {value['ssim']:.3f}{group}, {name}")
        if rows:
            scale = min(1.0, SHEET_CELL / max(side for row in rows for side in row[0].shape[1:]))
            titles = ["input", "reconstruction", "4x |difference|"]
            save_contact_sheet(rows, self.output_dir / "contact_sheet.png", titles, captions, scale)

    def _report(self, records: Sequence[ImageRecord]) -> dict[str, Any]:
        """What metrics.json holds."""
        inside = [record for record in records if record.headline]
        outside = [record for record in records if not record.headline]
        budgets = [record.budget for record in records]
        return {
            "headline_filter": self.headline_filter or None,
            "group_by": self.group_by,
            "headline": self._section(inside),
            "outside_headline": self._section(outside) if outside else None,
            "bicubic": {"factor": self.factor},
            "jpeg": {
                "budget_bytes": {"min": min(budgets), "max": max(budgets)},
                "mean_bytes": statistics.fmean(record.jpeg_bytes for record in records),
                "over_budget": [record.path for record in records if record.jpeg_bytes > record.budget],
            },
            "non_finite": [
                {"path": record.path, "method": method, "metric": name}
                for record in records
                for method, values in record.metrics.items()
                for name, value in values.items()
                if not math.isfinite(value)
            ],
            "provenance": {**provenance(self.device), **self.provenance},
        }

    def _section(self, records: Sequence[ImageRecord]) -> dict[str, Any]:
        groups: dict[str, list[ImageRecord]] = {}
        for record in records if self.group_by else ():
            groups.setdefault(record.columns[str(self.group_by)] or "(none)", []).append(record)
        return {"overall": summarise(records), "groups": {name: summarise(groups[name]) for name in sorted(groups)}}


def _check_range(what: str, image: Tensor, shape: Sequence[int]) -> None:
    if image.ndim != 4 or image.shape[1] != 1 or image.shape != shape:
        raise ValueError(f"evaluation: found {what} {tuple(image.shape)}; expected {tuple(shape)} as [B, 1, H, W].")
    low, high = float(image.nan_to_num().min()), float(image.nan_to_num().max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise ValueError(
            f"evaluation: found {what} values from {low:.3f} to {high:.3f}; expected [0, 1]. "
            "Scale (and clamp) it first: common.intensity maps signed values."
        )
