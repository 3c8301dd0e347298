"""Ignite handlers that show what a run is doing: progress bar, image grids, reconstructions on disk."""

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
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..distributed import is_rank_zero
from ..files import atomic_path, result_name
from ..io.contact_sheet import contact_sheet_array, reconstruction_rows, save_contact_sheet
from ..metrics import psnr

_logger = logging.getLogger(__name__)

SHEET_TITLES = ["input", "reconstruction", "|difference| x 4"]  # ASCII: Pillow's own font has no ×


def scalars(output: dict[str, Any]) -> dict[str, float]:
    """Pick the loss terms and norms out of a step's output: everything that is a float."""
    return {name: value for name, value in output.items() if isinstance(value, float)}


class ProgressBar:
    """One bar over the whole run with its ETA and the latest losses; it starts where a resumed run starts."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Follow this engine; only rank 0 shows a bar."""
        if is_rank_zero():
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
            engine.add_event_handler(Events.COMPLETED | Events.TERMINATE | Events.EXCEPTION_RAISED, self._close)

    def _start(self, engine: Engine) -> None:
        assert engine.state.max_epochs is not None and engine.state.epoch_length is not None
        total = engine.state.max_epochs * engine.state.epoch_length
        self.bar = tqdm(
            total=total,
            initial=engine.state.iteration,
            desc=self.description,
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
        )

    def _advance(self, engine: Engine) -> None:
        assert self.bar is not None
        if isinstance(engine.state.output, dict):
            shown = {name: f"{value:.4f}" for name, value in scalars(engine.state.output).items()}
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def _close(self, engine: Engine, error: BaseException | None = None) -> None:
        if self.bar is not None:
            self.bar.close()
        if error is not None:
            raise error


class ReconstructionGrid:
    """Handler of the evaluator: the first images with reconstruction and difference ×4, to TensorBoard.

    Args:
        log_dir: of the TensorBoard events.
        num_images: rows of the grid.
    """

    def __init__(self, log_dir: str, num_images: int) -> None:
        self.log_dir = log_dir
        self.num_images = num_images

    def attach(self, engine: Engine) -> None:
        """Write after the first batch of each validation."""
        if is_rank_zero():
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the grid if this is the validation's first batch."""
        if engine.state.iteration != 1:
            return
        output: Any = engine.state.output
        rows = reconstruction_rows(output["image"][: self.num_images], output["pred"][: self.num_images])
        picture = contact_sheet_array(rows, SHEET_TITLES)
        with SummaryWriter(self.log_dir) as writer:
            writer.add_image("validation/reconstruction", picture, engine.state.epoch, dataformats="HW")


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
