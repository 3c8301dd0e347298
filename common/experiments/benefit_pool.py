"""The pool of synthetic images that all trials of the experiment share: made once, block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..amp import autocast
from ..diffusion.image_sampler import ImageSampler
from ..diffusion.token_sampler import TokenSampler
from ..evaluation.image_features import FeatureExtractor, ImageFeatures
from ..fingerprint import json_sha256, network_sha256
from ..io.image_writer import write_png
from ..networks.conditioning import TokenScaler, TokenSelection, named_tokens
from ..networks.dino import DinoEncoder
from ..pipelines.diffusion import DinoDiffusion
from ..pipelines.interpolation import Interpolation
from ..pipelines.source_table import SourceTable
from ..pipelines.strategies import Prior, SampleRequest, Strategy, Variation
from .benefit_recipes import INTERPOLATION, MIX_RANGE, PRIOR, VARIATION, Block, Recipe


@dataclass(frozen=True)
class Generator:
    """What the bundle's inference.yaml builds.

    Attributes:
        sampler: tokens and seeds to images.
        token_sampler: loads the prior, which not every strategy needs.
        scaler: standardises tokens.
        encoder: DINO.
        selection: which of its tokens condition the denoiser.
        patch_grid: k that the selection is pooled from.
    """

    sampler: ImageSampler
    token_sampler: Callable[[], TokenSampler]
    scaler: TokenScaler
    encoder: DinoEncoder
    selection: TokenSelection
    patch_grid: int


def load_generator(
    bundle_root: str | Path, num_inference_steps: int, guidance_scale: float, amp: bool, device: str | None = None
) -> Generator:
    """Build the bundle's networks with its weights.

    Args:
        bundle_root: of the latent diffusion bundle.
        num_inference_steps: of the image sampler.
        guidance_scale: 1 is none, and costs half.
        amp: bfloat16 where the hardware has it.
        device: such as "cpu"; None takes the config's own choice.

    Raises:
        WeightsError: the bundle has no weights.
    """
    settings = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "amp": amp}
    pipe = DinoDiffusion.from_bundle(bundle_root, device or "auto", **settings)
    parts = pipe.scaler, pipe.encoder, pipe.selection, pipe.patch_grid
    return Generator(pipe.image_sampler, lambda: pipe.token_sampler, *parts)


class DinoTokens(nn.Module):
    """The tokens that condition the denoiser, CLS first: [B, 1, H, W] in [0, 1] -> [B, N·D]."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.encoder = generator.encoder
        self.selection = generator.selection
        self.patch_grid = generator.patch_grid

    def forward(self, image: Tensor) -> Tensor:
        """Encode a batch."""
        return self.selection.select(named_tokens(self.encoder, image, self.patch_grid)).flatten(1)


def token_features(generator: Generator, cache_dir: str | Path, progress: bool = True) -> ImageFeatures:
    """Encodes files to `DinoTokens`, and keeps them by content."""
    network = DinoTokens(generator)
    settings = f"{generator.selection.use_registers}, {generator.selection.patch_grid}, {generator.patch_grid}"
    extractor = FeatureExtractor("dino_tokens", network, f"{settings}, {generator.encoder.image_size}")
    sampler = generator.sampler
    return ImageFeatures(extractor, cache_dir, sampler.image_size, device=sampler.device, progress=progress)


class SyntheticPool:
    """Synthetic images on disk by recipe.

    A folder per generator and its settings. A block is always computed whole, so that what a killed run left of it is
    completed to the same pixels.

    Args:
        root: of all pools.
        generator: of the bundle.
        sources: encodes the real images.
        amp: decode in bfloat16 too, where the hardware has it.
    """

    def __init__(self, root: str | Path, generator: Generator, sources: ImageFeatures, amp: bool) -> None:
        self.generator = generator
        self.sources = sources
        self.amp = amp
        self._prior: TokenSampler | None = None
        settings = self._settings()
        self.folder = Path(root) / json_sha256(settings)[:16]

    def path(self, recipe: Recipe) -> Path:
        """Of an image; `make` puts it there."""
        return self.folder / f"{recipe.name}.png"

    def make(self, blocks: Sequence[Block]) -> None:
        """Make the images that are not there."""
        missing = [block for block in blocks if not all(self.path(recipe).is_file() for recipe in block)]
        if not missing:
            return
        tokens = self._source_tokens(missing)
        with tqdm(total=sum(map(len, missing)), desc="generating", unit="image", dynamic_ncols=True) as bar:
            for block in missing:
                if not all(self.path(recipe).is_file() for recipe in block):  # another process may have made it
                    self._make(block, tokens)
                bar.update(len(block))

    def _make(self, block: Block, tokens: dict[str, Tensor]) -> None:
        strategy, requests = self._strategy(block, tokens)
        with autocast(self.generator.sampler.device, self.amp):
            images = self.generator.sampler.sample(strategy.tokens(requests), [request.seed for request in requests])
        for recipe, image in zip(block, images, strict=True):
            if not self.path(recipe).is_file():
                about = {"strategy": recipe.strategy, "seed": str(recipe.seed), "pool": self.folder.name}
                write_png(image.clamp(0, 1), self.path(recipe), provenance=about)

    def _source_tokens(self, blocks: Sequence[Block]) -> dict[str, Tensor]:
        paths = sorted({source for block in blocks for recipe in block for source in recipe.sources})
        if not paths:
            return {}
        shape = tuple(self.generator.scaler.tokens_mean.shape)
        found = torch.from_numpy(self.sources.of_files(paths).features).unflatten(1, shape)
        return dict(zip(paths, found, strict=True))

    def _strategy(self, block: Block, tokens: dict[str, Tensor]) -> tuple[Strategy, list[SampleRequest]]:
        """The bundle's own strategy for the sources of one block."""
        paths = list(dict.fromkeys(source for recipe in block for source in recipe.sources))
        requests = [
            SampleRequest(each.name, each.seed, tuple(map(paths.index, each.sources)), each.mix, each.label)
            for each in block
        ]
        kind = block[0].strategy
        if kind == PRIOR:
            self._prior = self._prior or self.generator.token_sampler()
            return Prior(self._prior, len(block), None, seed=0), requests
        table = SourceTable(paths, paths, [""] * len(paths), torch.stack([tokens[path] for path in paths]))
        if kind == VARIATION:
            return Variation(table, 1, seed=0), requests
        if kind == INTERPOLATION:
            return Interpolation(table, 1, "slerp", MIX_RANGE, self.generator.scaler, seed=0), requests
        raise ValueError(f"strategy: expected {VARIATION}, {INTERPOLATION} or {PRIOR}, found {kind!r}")

    def _settings(self) -> dict[str, Any]:
        """What an image depends on beside its recipe."""
        sampler = self.generator.sampler
        rule = sampler.sampler
        return {
            "denoiser": network_sha256(sampler.denoiser),
            "codec": network_sha256(sampler.codec),
            "method": rule.method,
            "timesteps": [round(float(each), 4) for each in rule.timesteps],
            "guidance": [rule.guidance_scale, list(rule.guidance_interval)],
            "amp": [sampler.amp, self.amp],
            "image_size": sampler.image_size,
        }
