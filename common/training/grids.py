"""What a network can do by now: a grid of images after each validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor

from ..distributed import is_rank_zero
from ..io.contact_sheet import contact_sheet_array, reconstruction_rows, save_contact_sheet

SHEET_TITLES = ["input", "reconstruction", "|difference| x 4"]  # ASCII: Pillow's own font has no ×


class Grid(ABC):
    """Handler of the evaluator: rows of images, as a PNG and to the trainer's TensorBoard.

    Args:
        output_dir: of the PNGs, `<name>_epoch_NNN.png`.
        titles: of the columns; None for none.
        name: of the pictures.
    """

    def __init__(self, output_dir: str, titles: list[str] | None, name: str) -> None:
        self.output_dir = Path(output_dir)
        self.titles = titles
        self.name = name
        self.captions: list[str] | None = None  # of the rows: the names of their sources

    def attach(self, engine: Engine) -> None:
        """Draw at the end of each validation."""
        if is_rank_zero():
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the grid."""
        rows, epoch = self._rows(), engine.state.epoch
        save_contact_sheet(rows, self.output_dir / f"{self.name}_epoch_{epoch:03d}.png", self.titles, self.captions)
        writer = getattr(engine, "tensorboard", None)
        if writer is not None:
            sheet = contact_sheet_array(rows, self.titles, self.captions)
            writer.add_image(f"val/{self.name}", sheet, epoch, dataformats="HW")

    @abstractmethod
    def _rows(self) -> list[list[Tensor]]:
        """Images [1, H, W] in [0, 1]."""


class ReconstructionGrid(Grid):
    """Handler of the evaluator: the first images with reconstruction and difference ×4.

    Args:
        output_dir: of the PNGs.
        num_images: rows.
    """

    def __init__(self, output_dir: str, num_images: int) -> None:
        super().__init__(output_dir, SHEET_TITLES, "reconstructions")
        self.num_images = num_images
        self.rows: list[list[Tensor]] = []

    def attach(self, engine: Engine) -> None:
        """Take the first batch of each validation, and draw at its end."""
        super().attach(engine)
        if is_rank_zero():
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._take)

    def _take(self, engine: Engine) -> None:
        if engine.state.iteration > 1:
            return
        output: Any = engine.state.output
        batch: Any = engine.state.batch
        self.rows = reconstruction_rows(output["image"][: self.num_images], output["pred"][: self.num_images])
        if "image_path" in batch:
            self.captions = [Path(path).name for path in batch["image_path"][: self.num_images]]

    def _rows(self) -> list[list[Tensor]]:
        return self.rows
