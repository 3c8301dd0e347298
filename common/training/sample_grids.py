"""Samples of a diffusion model as it is by now, after each validation."""

from __future__ import annotations

from pathlib import Path

import torch
from ignite.engine import Engine
from torch import Tensor

from ..data.latent_store import LatentDataset
from ..diffusion.image_sampler import ImageSampler
from ..diffusion.pixel_image_sampler import PixelImageSampler
from ..networks.conditioning import TokenSelection
from ..seeding import Purpose, derive_seed
from .grids import Grid

TITLES = ["source (decoded)", "sample 1", "sample 2", "sample 3"]
COLUMNS = 4  # of unconditional samples


class SampleGrid(Grid):
    """Handler of the evaluator: samples for fixed held-out sources, as a PNG and to TensorBoard.

    Args:
        sampler: of the averaged weights.
        selection: which tokens condition.
        dataset: of the sources.
        output_dir: of the PNGs, samples_epoch_NNN.png.
        num_sources: rows.
        seed: of the samples, the same at every validation.
    """

    def __init__(
        self,
        sampler: ImageSampler,
        selection: TokenSelection,
        dataset: LatentDataset,
        output_dir: str,
        num_sources: int,
        seed: int,
    ) -> None:
        super().__init__(output_dir, TITLES, "samples")
        self.sampler = sampler
        self.selection = selection
        self.seed = seed
        step = max(1, len(dataset) // num_sources)
        indices = range(0, len(dataset), step)[:num_sources]
        self.sources = torch.utils.data.default_collate([dataset[index] for index in indices])
        self.captions = [Path(dataset.store.items[dataset.rows[index]]["image"]).name for index in indices]

    def _rows(self) -> list[list[Tensor]]:
        tokens = self.selection.select(self.sources)
        columns = len(TITLES) - 1
        seeds = [derive_seed(self.seed, Purpose.SAMPLING, number) for number in range(len(tokens) * columns)]
        samples = self.sampler.sample(tokens.repeat_interleave(columns, dim=0), seeds)
        with torch.inference_mode():
            decoded = self.sampler.codec.decode(self.sources["latents_mean"].to(self.sampler.device)).cpu()
        return [[decoded[i], *samples[i * columns : (i + 1) * columns]] for i in range(len(tokens))]


class UnconditionalSampleGrid(Grid):
    """Handler of the evaluator: samples from noise alone, as a PNG and to TensorBoard.

    Args:
        sampler: of the averaged weights.
        output_dir: of the PNGs, samples_epoch_NNN.png.
        num_images: samples, drawn in one batch; 0 draws no grid.
        seed: of the samples, the same at every validation.
    """

    def __init__(self, sampler: PixelImageSampler, output_dir: str, num_images: int, seed: int) -> None:
        super().__init__(output_dir, None, "samples")
        self.sampler = sampler
        self.num_images = num_images
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Draw at the end of each validation, if there is anything to draw."""
        if self.num_images > 0:
            super().attach(engine)

    def _rows(self) -> list[list[Tensor]]:
        seeds = [derive_seed(self.seed, Purpose.SAMPLING, number) for number in range(self.num_images)]
        samples = list(self.sampler.sample(seeds))
        return [samples[start : start + COLUMNS] for start in range(0, len(samples), COLUMNS)]
