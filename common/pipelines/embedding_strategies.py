"""Four ways to choose the embedding that an image is generated from.

`variation` and `interpolation` are DiNO-Diffusion's (arXiv 2407.11594, section 2.3); `neighbourhood` and `prior` are
what it lacks: new embeddings near known ones, and embeddings without any source image.

A strategy lists its samples as plain requests, and makes the tokens of a few of them at a time. What a request gets
depends on the run's seed and its number alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from ..diffusion.token_sampler import TokenSampler
from ..fingerprint import network_sha256
from ..networks.conditioning import TokenScaler
from ..seeding import Purpose, derive_seed, torch_seed
from .interpolation import Interpolation, InterpolationMode
from .sample_request import SampleRequest, StrategyError, at_least_one, numbered_request
from .source_table import SourceTable

StrategyName = Literal["variation", "interpolation", "neighbourhood", "prior"]
CDIST_ROWS = 512  # sources whose distances to all others are in memory at a time


class Strategy(Protocol):
    """How embeddings are chosen.

    Attributes:
        name: of the strategy.
        table: the sources; None without.
        settings: what a run must share to continue a folder; not the number of images where that may grow.
    """

    name: str
    table: SourceTable | None
    settings: dict[str, Any]

    def requests(self) -> list[SampleRequest]:
        """All images of the run, always in the same order."""
        ...

    def tokens(self, requests: Sequence[SampleRequest]) -> Tensor:
        """Tokens [B, N, D] of some of them, as the encoder would give them."""
        ...


class Variation:
    """Several images per source, from its own tokens: `reconstruction` in the paper, section 2.3.1.

    Args:
        table: the sources.
        num_per_source: images of each.
        seed: of the run.
    """

    name = "variation"

    def __init__(self, table: SourceTable, num_per_source: int, seed: int) -> None:
        self.table: SourceTable | None = table
        self._sources = table
        self.num_per_source = at_least_one("num_per_source", num_per_source)
        self.seed = seed
        self.settings = {"sources": table.digest(), "num_per_source": num_per_source}

    def requests(self) -> list[SampleRequest]:
        """Source by source; each keeps its source's label."""
        return _requests_per_source(self.name, self._sources, self.num_per_source, self.seed)

    def tokens(self, requests: Sequence[SampleRequest]) -> Tensor:
        """The sources' own tokens."""
        return self._sources.tokens[[request.sources[0] for request in requests]]


class Neighbourhood:
    """Images of embeddings near a source's: its tokens plus noise as long as the way to its k-th nearest neighbour.

    The noise is Gaussian with the covariance of the sources: in other directions there are no radiographs. Lengths are
    those of standardised tokens, all N × D of an image together.

    Args:
        table: the sources.
        num_per_source: images of each.
        num_neighbours: k; with few sources the furthest counts.
        noise_scale: length of the noise per distance to the k-th neighbour.
        scaler: of the denoiser, which standardises tokens.
        seed: of the run.
    """

    name = "neighbourhood"

    def __init__(
        self,
        table: SourceTable,
        num_per_source: int,
        num_neighbours: int,
        noise_scale: float,
        scaler: TokenScaler,
        seed: int,
    ) -> None:
        if not 0.0 <= noise_scale < math.inf:
            raise StrategyError(f"noise_scale: expected a number of at least 0, found {noise_scale}")
        if len(table) < 2:
            raise StrategyError(f"neighbourhood: expected at least two sources, found {len(table)}")
        self.table: SourceTable | None = table
        self._sources = table
        self.num_per_source = at_least_one("num_per_source", num_per_source)
        self.scaler = scaler
        self.seed = seed
        scaled = scaler.scale(table.tokens.to(scaler.tokens_mean)).cpu()
        self._centred = scaled - scaled.mean(0)
        flat = scaled.flatten(1)
        # The smallest distance is the one to itself.
        rank = 1 + min(at_least_one("num_neighbours", num_neighbours), len(table) - 1)
        nearest = [torch.cdist(rows, flat).kthvalue(rank, dim=1).values for rows in flat.split(CDIST_ROWS)]
        self._reach = noise_scale * torch.cat(nearest)
        self.settings = {
            "sources": table.digest(),
            "num_per_source": num_per_source,
            "num_neighbours": num_neighbours,
            "noise_scale": noise_scale,
        }

    def requests(self) -> list[SampleRequest]:
        """Source by source; each keeps its source's label."""
        return _requests_per_source(self.name, self._sources, self.num_per_source, self.seed)

    def tokens(self, requests: Sequence[SampleRequest]) -> Tensor:
        """The sources' tokens with noise, drawn from each request's seed."""
        moved = []
        for request in requests:
            generator = torch.Generator().manual_seed(derive_seed(request.seed, Purpose.STRATEGY))
            weights = torch.randn(len(self._centred), generator=generator)
            noise = torch.tensordot(weights, self._centred, dims=1)
            source = request.sources[0]
            moved.append(noise * (self._reach[source] / noise.norm().clamp_min(1e-12)))
        shift = torch.stack(moved).to(self.scaler.tokens_std) * self.scaler.tokens_std
        return self._sources.tokens[[request.sources[0] for request in requests]] + shift.cpu()


class Prior:
    """Images without a source: tokens drawn from the prior, for a label or for any.

    Args:
        token_sampler: of the trained prior.
        num_samples: images.
        label: to condition the prior on; None for any. The images carry it.
        seed: of the run.
    """

    name = "prior"

    def __init__(self, token_sampler: TokenSampler, num_samples: int, label: str | None, seed: int) -> None:
        self.table: SourceTable | None = None
        self.token_sampler = token_sampler
        self.num_samples = at_least_one("num_samples", num_samples)
        self.label = label
        self.seed = seed
        token_sampler.check_label(label)
        rule = token_sampler.sampler
        self.settings = {
            "label": label,
            "prior_sha256": network_sha256(token_sampler.prior),
            "prior_method": rule.method,
            "prior_steps": len(rule.timesteps),
            "prior_guidance_scale": rule.guidance_scale,
        }

    def requests(self) -> list[SampleRequest]:
        """Numbered."""
        label = self.label or ""
        return [numbered_request(self.name, number, self.seed, label=label) for number in range(self.num_samples)]

    def tokens(self, requests: Sequence[SampleRequest]) -> Tensor:
        """Drawn from each request's seed."""
        seeds = [torch_seed(request.seed, Purpose.PRIOR) for request in requests]
        return self.token_sampler.sample(seeds, self.label)


def make_strategy(
    name: StrategyName,
    sources: Callable[[], SourceTable],
    token_sampler: Callable[[], TokenSampler],
    scaler: TokenScaler,
    seed: int,
    num_samples: int,
    num_per_source: int,
    label: str | None,
    interpolation_mode: InterpolationMode,
    mix_range: tuple[float, float],
    num_neighbours: int,
    noise_scale: float,
) -> Strategy:
    """The strategy of this name; sources are encoded, or the prior loaded, only where they are needed.

    Raises:
        StrategyError: unknown name, or knobs and sources that do not allow it.
    """
    if name not in get_args(StrategyName):
        raise StrategyError(f"strategy: expected one of {', '.join(get_args(StrategyName))}, found '{name}'")
    if name == "prior":
        return Prior(token_sampler(), num_samples, label, seed)
    if label is not None:
        raise StrategyError(
            f"label: expected null with the strategy {name}, found '{label}'; only prior is conditioned on a label, "
            "images of the others keep that of their sources"
        )
    table = sources()
    if name == "variation":
        return Variation(table, num_per_source, seed)
    if name == "interpolation":
        return Interpolation(table, num_samples, interpolation_mode, mix_range, scaler, seed)
    return Neighbourhood(table, num_per_source, num_neighbours, noise_scale, scaler, seed)


def _requests_per_source(strategy: str, table: SourceTable, num_per_source: int, seed: int) -> list[SampleRequest]:
    sources = [source for source in range(len(table)) for _ in range(num_per_source)]
    return [
        numbered_request(strategy, number, seed, sources=(source,), label=table.labels[source])
        for number, source in enumerate(sources)
    ]
