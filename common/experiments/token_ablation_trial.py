"""One cell of the token ablation from training to figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.latent_store import LatentStore
from ..diffusion.image_sampler import ImageSampler
from ..diffusion.samplers import Sampler
from ..networks.dino import DinoEncoder
from ..networks.latent_codec import LatentCodec
from ..seeding import Purpose, torch_seed
from .generator_scores import GeneratorScores
from .token_ablation import REAL, RECONSTRUCTION, STORE_SEED, UNCONDITIONAL, Cell, DenoiserTraining, TrainedDenoiser


@dataclass(frozen=True)
class Sampling:
    """How images are drawn, alike for all cells.

    Attributes:
        num_inference_steps: of DPM-Solver++(2M).
        guidance_scale: of classifier-free guidance; the unconditional denoiser has none.
        num_diverse_sources: sources that get several images.
        num_diverse: images of each.
        batch_size: images at a time.
        amp: bfloat16 where the hardware has it.
    """

    num_inference_steps: int
    guidance_scale: float
    num_diverse_sources: int
    num_diverse: int
    batch_size: int = 32
    amp: bool = True

    def settings(self) -> dict[str, Any]:
        """What changes figures."""
        return {name: value for name, value in asdict(self).items() if name != "batch_size"}


class Trial:
    """Train a cell's denoiser, draw images from the held-out sources, score them.

    Args:
        training: of the denoisers.
        judge: name of the encoder that all are scored by, one of the training's.
        inception_path: weights for FD-Inception, or None.
        sampling: how images are drawn.
        device: of the networks.
    """

    def __init__(
        self,
        training: DenoiserTraining,
        judge: str,
        inception_path: str | None,
        sampling: Sampling,
        device: torch.device,
    ) -> None:
        self.training = training
        self.judge = judge
        self.inception_path = inception_path
        self.sampling = sampling
        self.device = device

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """The figures of `GeneratorScores`, and what the training was."""
        if cell.variant == REAL:
            return self._scores.real()
        store, codec = self.training.store_and_codec(cell.encoder)
        if cell.variant == RECONSTRUCTION:
            return self._scores.score(self._reconstruct(store, codec))
        trained = self.training(cell)
        images, variations = self.draw(cell, trained, store, codec)
        return {**trained.about, **self._scores.score(images, variations)}

    @cached_property
    def _scores(self) -> GeneratorScores:
        """From the judge's store; images are the same in all stores."""
        store, _ = self.training.store_and_codec(self.judge)
        rows = {split: store.indices(split) for split in ("train", "val")}
        return GeneratorScores(
            [store.items[row] for row in rows["train"]],
            [store.items[row] for row in rows["val"]],
            {split: store.tokens(rows[split])["cls_token"] for split in rows},
            DinoEncoder(self.training.encoders[self.judge], store.made_with["encoder_image_size"]),
            self.inception_path,
            self.training.work_dir / "features",
            store.made_with["image_size"],
            self.sampling.batch_size,
            STORE_SEED,
            self.sampling.amp,
            self.device,
        )

    @torch.inference_mode()
    def _reconstruct(self, store: LatentStore, codec: LatentCodec) -> Tensor:
        """Held-out images through the codec alone, from the means of their posteriors."""
        latents = torch.from_numpy(store.arrays["latents_mean"][store.indices("val"), 0]).float()
        return torch.cat(
            [codec.decode(part.to(self.device)).float().cpu() for part in latents.split(self.sampling.batch_size)]
        )

    def draw(
        self, cell: Cell, trained: TrainedDenoiser, store: LatentStore, codec: LatentCodec
    ) -> tuple[Tensor, Tensor]:
        """One image per held-out source [N, 1, H, W], and several of some sources [M, V, 1, H, W]."""
        scale = 0.0 if cell.variant == UNCONDITIONAL else self.sampling.guidance_scale
        rule = Sampler(trained.schedule, "dpm_solver++_2m", self.sampling.num_inference_steps, guidance_scale=scale)
        size = store.made_with["image_size"]
        sampler = ImageSampler(trained.denoiser.to(self.device), codec, rule, size, self.sampling.amp, self.device)
        tokens = trained.selection.select(store.tokens(store.indices("val")))
        everyone = range(len(tokens))
        chosen = list(everyone[:: max(1, len(tokens) // self.sampling.num_diverse_sources)])
        chosen = chosen[: self.sampling.num_diverse_sources]
        images = self._sample(sampler, tokens, everyone, cell.seed, 0)
        more = [self._sample(sampler, tokens, chosen, cell.seed, v) for v in range(1, self.sampling.num_diverse)]
        return images, torch.stack([images[chosen], *more], dim=1)

    def _sample(self, sampler: ImageSampler, tokens: Tensor, rows: Sequence[int], seed: int, variation: int) -> Tensor:
        """The noise depends on seed, source and number of the variation alone: all cells of a seed share it."""
        parts = []
        step = self.sampling.batch_size
        for start in tqdm(range(0, len(rows), step), desc="sampling", unit="batch", dynamic_ncols=True):
            part = list(rows[start : start + step])
            seeds = [torch_seed(seed, Purpose.SAMPLING, variation, row) for row in part]
            parts.append(sampler.sample(tokens[part], seeds))
        return torch.cat(parts)
