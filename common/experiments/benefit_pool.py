"""The pool of synthetic images that all trials share: named by their sources' content and a number, each made once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..amp import autocast
from ..errors import SettingsError
from ..evaluation.image_features import FeatureExtractor, ImageFeatures
from ..fingerprint import file_sha256, json_sha256, network_sha256
from ..io.image_writer import write_png
from ..networks.conditioning import named_tokens
from ..pipelines.diffusion import DinoDiffusion
from ..pipelines.interpolation import Interpolation
from ..pipelines.source_table import SourceTable
from ..pipelines.strategies import Prior, SampleRequest, Strategy, Variation
from ..progress import ProgressBar
from ..seeding import Purpose, derive_seed, torch_seed
from .benefit_trials import INTERPOLATION, PRIOR, VARIATION, Item

BLOCK = 5  # images that are made together: what a killed run has made of one is made again to the bit
MIX_RANGE = (0.25, 0.75)  # weight of the second source, as in the bundle's inference.yaml
MIN_PARTNERS = 8  # first images of a class among which each has its partners; later ones pair with all before them

content_sha256 = lru_cache(maxsize=None)(file_sha256)


@dataclass(frozen=True)
class Recipe:
    """One synthetic image. What two seeds, subset sizes or ratios ask for has one name, and so is made once."""

    strategy: str  # variation, interpolation or prior
    sources: tuple[str, ...]  # paths of none, one or two real images
    number: int  # tells images of the same sources apart
    label: str = ""  # of the sources; "" for those of the prior

    @property
    def name(self) -> str:
        """Relative path without suffix; says nothing of whom the sources show."""
        digests = [content_sha256(source)[:12] for source in self.sources]
        folder = digests[0][:2] if digests else f"{self.number // 1000:03d}"
        return f"{self.strategy}/{folder}/{'_'.join([*digests, f'{self.number:05d}'])}"

    @property
    def seed(self) -> int:
        """Of the sample's noise."""
        return torch_seed(*(int(content_sha256(source)[:8], 16) for source in self.sources), self.number)

    @property
    def mix(self) -> float | None:
        """Weight of the second source."""
        if len(self.sources) < 2:
            return None
        return round(float(np.random.default_rng(derive_seed(self.seed, Purpose.STRATEGY)).uniform(*MIX_RANGE)), 6)


Block = tuple[Recipe, ...]  # what is made together


def source_recipes(order: Sequence[Item], seed: int, strategy: str, size: int, count: int) -> list[list[Recipe]]:
    """For each of the first `size` images of `draw_order` its first `count` synthetic ones, filled up to whole blocks.

    By variation, or by interpolation with partners from the seed; a class with a single image is a SettingsError.
    """

    def recipe(rank: int, number: int) -> Recipe:
        sources = [order[rank]["image"]]
        if strategy == INTERPOLATION:
            sources.append(_partner(order[:size], seed, rank, number)["image"])
        return Recipe(strategy, tuple(sources), number, order[rank]["label"])

    return [[recipe(rank, number) for number in _whole_blocks(count)] for rank in range(size)]


def _partner(items: Sequence[Item], seed: int, rank: int, number: int) -> Item:
    """An image of the same class that comes before it, so that a subset's pairs are pairs of every larger one."""
    label = items[rank]["label"]
    mates = [place for place, item in enumerate(items) if item["label"] == label]
    mates = [place for place in mates[: max(mates.index(rank), MIN_PARTNERS)] if place != rank]
    if not mates:
        raise SettingsError(
            f"interpolation: found a single image of {label} among {len(items)}; expected more, take larger sizes"
        )
    draw = np.random.default_rng(derive_seed(seed, Purpose.STRATEGY, rank, number))
    return items[mates[int(draw.integers(len(mates)))]]


def prior_recipes(count: int) -> list[Recipe]:
    """The first `count` samples of the prior, which belong to no real image, filled up to whole blocks."""
    return [Recipe(PRIOR, (), number) for number in _whole_blocks(count)]


def _whole_blocks(count: int) -> range:
    return range(-(-count // BLOCK) * BLOCK)


def in_blocks(recipes: Iterable[Recipe]) -> list[Block]:
    """Blocks of recipes in their order, each block once; the recipes come in whole blocks."""
    each = list(recipes)  # cut first: blocks of two trials may share some of their recipes
    return list(dict.fromkeys(tuple(each[first : first + BLOCK]) for first in range(0, len(each), BLOCK)))


class DinoTokens(nn.Module):
    """The tokens that condition the denoiser, CLS first: [B, 1, H, W] in [0, 1] -> [B, N·D]."""

    def __init__(self, pipe: DinoDiffusion) -> None:
        super().__init__()
        self.encoder, self.selection, self.patch_grid = pipe.encoder, pipe.selection, pipe.patch_grid

    def forward(self, image: Tensor) -> Tensor:
        """Encode a batch."""
        return self.selection.select(named_tokens(self.encoder, image, self.patch_grid)).flatten(1)


def token_features(pipe: DinoDiffusion, cache_dir: str | Path, progress: bool = True) -> ImageFeatures:
    """Encodes files to `DinoTokens`, and keeps them by content."""
    selection = pipe.selection
    settings = f"{selection.use_registers}, {selection.patch_grid}, {pipe.patch_grid}, {pipe.encoder.image_size}"
    extractor = FeatureExtractor("dino_tokens", DinoTokens(pipe), settings)
    return ImageFeatures(extractor, cache_dir, pipe.image_size, device=pipe.device, progress=progress)


class SyntheticPool:
    """Synthetic images on disk by recipe, a folder below `root` per generator and its settings.

    A block is always computed whole, so that what a killed run left of it is completed to the same pixels. `sources`
    encodes the real images.
    """

    def __init__(self, root: str | Path, pipe: DinoDiffusion, sources: ImageFeatures) -> None:
        self.pipe, self.sources, sampler = pipe, sources, pipe.sampler
        settings = {  # what an image depends on beside its recipe
            "denoiser": network_sha256(pipe.network),
            "codec": network_sha256(pipe.codec),
            "method": sampler.method,
            "timesteps": [round(float(each), 4) for each in sampler.timesteps],
            "guidance": [sampler.guidance_scale, list(sampler.guidance_interval)],
            "amp": [pipe.amp, pipe.amp],  # of the denoiser, and of the decoder
            "image_size": pipe.image_size,
        }
        self.folder = Path(root) / json_sha256(settings)[:16]

    def path(self, recipe: Recipe) -> Path:
        """Of an image; `make` puts it there."""
        return self.folder / f"{recipe.name}.png"

    def make(self, blocks: Sequence[Block]) -> None:
        """Make the images that are not there."""

        def is_there(block: Block) -> bool:
            return all(self.path(recipe).is_file() for recipe in block)

        missing = [block for block in blocks if not is_there(block)]
        paths = sorted({source for block in missing for recipe in block for source in recipe.sources})
        tokens: dict[str, Tensor] = {}
        if paths:
            shape = tuple(self.pipe.scaler.tokens_mean.shape)
            found = torch.from_numpy(self.sources.of_files(paths).features).unflatten(1, shape)
            tokens = dict(zip(paths, found, strict=True))
        total = sum(map(len, missing))
        with ProgressBar(total=total, desc="generating", unit="image", disable=not missing) as bar:
            for block in missing:
                if not is_there(block):  # another process may have made it
                    self._make(block, tokens)
                bar.update(len(block))

    def _make(self, block: Block, tokens: dict[str, Tensor]) -> None:
        with autocast(self.pipe.device, self.pipe.amp):
            images = self.pipe.image_sampler.sample(self._tokens(block, tokens), [recipe.seed for recipe in block])
        for recipe, image in zip(block, images, strict=True):
            if not self.path(recipe).is_file():
                about = {"strategy": recipe.strategy, "seed": str(recipe.seed), "pool": self.folder.name}
                write_png(image.clamp(0, 1), self.path(recipe), provenance=about)

    def _tokens(self, block: Block, tokens: dict[str, Tensor]) -> Tensor:
        """Of the images of one block, by the bundle's own strategy."""
        paths = list(dict.fromkeys(source for recipe in block for source in recipe.sources))
        requests = [
            SampleRequest(each.name, each.seed, tuple(map(paths.index, each.sources)), each.mix) for each in block
        ]
        if block[0].strategy == PRIOR:
            return Prior(self.pipe.token_sampler, len(block), None, seed=0).tokens(requests)
        table = SourceTable(paths, paths, [""] * len(paths), torch.stack([tokens[path] for path in paths]))
        strategy: Strategy = Variation(table, 1, seed=0)
        if block[0].strategy != VARIATION:
            strategy = Interpolation(table, 1, "slerp", MIX_RANGE, self.pipe.scaler, seed=0)
        return strategy.tokens(requests)
