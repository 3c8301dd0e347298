"""What a network can do by now: a grid of images after each validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from ..distributed import is_rank_zero
from ..io.contact_sheet import contact_sheet_array, reconstruction_rows, save_contact_sheet
from ..seeding import Purpose, derive_seed

RECONSTRUCTION_TITLES = ["input", "reconstruction", "|difference| x 4"]  # ASCII: Pillow's own font has no ×
SAMPLE_TITLES = ["source (decoded)", "sample 1", "sample 2", "sample 3"]
COLUMNS = 4  # of unconditional samples


class Grid(ABC):
    """Handler of the evaluator: rows of images, as a PNG `<name>_epoch_NNN.png` and to the trainer's TensorBoard."""

    name = "samples"
    titles: list[str] | None = None  # of the columns
    captions: list[str] | None = None  # of the rows: the names of their sources

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

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
    """The first `num_images` of each validation with reconstruction and difference ×4."""

    name, titles = "reconstructions", RECONSTRUCTION_TITLES

    def __init__(self, output_dir: str, num_images: int) -> None:
        super().__init__(output_dir)
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


class SampleGrid(Grid):
    """Samples of an `ImageSampler` for sources of a held-out `LatentDataset`, the same at every validation."""

    titles = SAMPLE_TITLES

    def __init__(
        self, sampler: Any, selection: Any, dataset: Any, output_dir: str, num_sources: int, seed: int
    ) -> None:
        super().__init__(output_dir)
        self.sampler, self.selection, self.seed = sampler, selection, seed
        indices = range(0, len(dataset), max(1, len(dataset) // num_sources))[:num_sources]
        self.sources = torch.utils.data.default_collate([dataset[index] for index in indices])
        self.captions = [Path(dataset.store.items[dataset.rows[index]]["image"]).name for index in indices]

    def _rows(self) -> list[list[Tensor]]:
        tokens = self.selection.select(self.sources)
        columns = len(SAMPLE_TITLES) - 1
        seeds = [derive_seed(self.seed, Purpose.SAMPLING, number) for number in range(len(tokens) * columns)]
        samples = self.sampler.sample(tokens.repeat_interleave(columns, dim=0), seeds)
        with torch.inference_mode():
            decoded = self.sampler.codec.decode(self.sources["latents_mean"].to(self.sampler.device)).cpu()
        return [[decoded[i], *samples[i * columns : (i + 1) * columns]] for i in range(len(tokens))]


class UnconditionalSampleGrid(Grid):
    """Samples of a `PixelImageSampler` in one batch, the same at every validation; 0 images draw no grid."""

    def __init__(self, sampler: Any, output_dir: str, num_images: int, seed: int) -> None:
        super().__init__(output_dir)
        self.sampler, self.num_images, self.seed = sampler, num_images, seed

    def attach(self, engine: Engine) -> None:
        """Draw at the end of each validation, if there is anything to draw."""
        if self.num_images > 0:
            super().attach(engine)

    def _rows(self) -> list[list[Tensor]]:
        seeds = [derive_seed(self.seed, Purpose.SAMPLING, number) for number in range(self.num_images)]
        samples = list(self.sampler.sample(seeds))
        return [samples[start : start + COLUMNS] for start in range(0, len(samples), COLUMNS)]
