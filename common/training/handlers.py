"""Ignite handler of inference: reconstructions on disk."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from PIL import Image
from torch import Tensor

from ..files import atomic_path, result_name
from ..io.contact_sheet import reconstruction_rows, save_contact_sheet
from ..metrics import psnr

_logger = logging.getLogger(__name__)

SHEET_TITLES = ["input", "reconstruction", "|difference| x 4"]  # ASCII: Pillow's own font has no ×


class ReconstructionWriter:
    """Handler of the inference evaluator: a PNG per image, one contact sheet and one CSV with the PSNR of each.

    Args:
        output_dir: of all files.
        dataset_dir: names of the PNGs keep the path relative to it.
        sheet_rows: images on the contact sheet at most.
    """

    def __init__(self, output_dir: str, dataset_dir: str, sheet_rows: int) -> None:
        self.output_dir = Path(output_dir)
        self.dataset_dir = Path(dataset_dir).resolve()
        self.sheet_rows = sheet_rows
        self.results: list[tuple[str, float]] = []
        self.rows: list[list[Tensor]] = []

    def attach(self, engine: Engine) -> None:
        """Write images as they come, sheet and table at the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_batch)
        engine.add_event_handler(Events.COMPLETED, self._write_summary)

    def _write_batch(self, engine: Engine) -> None:
        output: Any = engine.state.output
        batch: Any = engine.state.batch
        image, pred = output["image"].cpu(), output["pred"].float().cpu()
        for path, reconstruction, value in zip(batch["image_path"], pred, psnr(pred, image).tolist(), strict=True):
            name = result_name(path, self.dataset_dir)
            pixels = (reconstruction[0] * 255).round().to(torch.uint8).numpy()
            with atomic_path(self.output_dir / f"{name}_reconstruction.png") as temporary:
                Image.fromarray(pixels).save(temporary, format="PNG")
            self.results.append((name, value))
        room = self.sheet_rows - len(self.rows)
        self.rows += reconstruction_rows(image[:room], pred[:room]) if room > 0 else []

    def _write_summary(self, engine: Engine) -> None:
        table = self.output_dir / "reconstructions.csv"
        with atomic_path(table) as temporary, open(temporary, "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["image", "psnr_db"])
            writer.writerows((name, f"{value:.2f}") for name, value in self.results)
        for name, value in self.results:
            _logger.info("%s: PSNR %.1f dB", name, value)
        captions = [f"{name}: PSNR {value:.1f} dB" for name, value in self.results[: len(self.rows)]]
        sheet = self.output_dir / "contact_sheet.png"
        save_contact_sheet(self.rows, sheet, SHEET_TITLES, row_captions=captions)
        _logger.info("pictures: %s", os.path.relpath(sheet))
