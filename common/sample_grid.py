"""What the denoiser can draw by now: a grid of samples after each validation."""

from __future__ import annotations

from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from .conditioning import TokenSelection
from .contact_sheet import contact_sheet_array, save_contact_sheet
from .distributed import is_rank_zero
from .image_sampler import ImageSampler
from .latent_store import LatentDataset
from .seeding import Purpose, derive_seed

TITLES = ["source (decoded)", "sample 1", "sample 2", "sample 3"]


class SampleGrid:
    """Handler of the evaluator: samples for fixed held-out sources, as a PNG and to TensorBoard.

    Args:
        sampler: of the averaged weights.
        selection: which tokens condition.
        dataset: of the sources.
        output_dir: of the PNGs, samples_epoch_NNN.png.
        log_dir: of the TensorBoard events.
        num_sources: rows.
        seed: of the samples, the same at every validation.
    """

    def __init__(
        self,
        sampler: ImageSampler,
        selection: TokenSelection,
        dataset: LatentDataset,
        output_dir: str,
        log_dir: str,
        num_sources: int,
        seed: int,
    ) -> None:
        self.sampler = sampler
        self.selection = selection
        self.output_dir = Path(output_dir)
        self.log_dir = log_dir
        self.seed = seed
        step = max(1, len(dataset) // num_sources)
        sources = [dataset[index] for index in range(0, len(dataset), step)][:num_sources]
        self.sources = torch.utils.data.default_collate(sources)

    def attach(self, engine: Engine) -> None:
        """Draw at the end of each validation."""
        if is_rank_zero():
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the grid."""
        tokens = self.selection.select(self.sources)
        columns = len(TITLES) - 1
        seeds = [derive_seed(self.seed, Purpose.SAMPLING, number) for number in range(len(tokens) * columns)]
        samples = self.sampler.sample(tokens.repeat_interleave(columns, dim=0), seeds)
        with torch.inference_mode():
            decoded = self.sampler.codec.decode(self.sources["latents_mean"].to(self.sampler.device)).cpu()
        rows = [[decoded[i], *samples[i * columns : (i + 1) * columns]] for i in range(len(tokens))]
        save_contact_sheet(rows, self.output_dir / f"samples_epoch_{engine.state.epoch:03d}.png", TITLES)
        with SummaryWriter(self.log_dir) as writer:
            sheet = contact_sheet_array(rows, TITLES)
            writer.add_image("validation/samples", sheet, engine.state.epoch, dataformats="HW")
