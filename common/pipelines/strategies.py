"""How the embeddings are chosen that images are generated from.

`variation` and `interpolation` (in a module of its own) are DiNO-Diffusion's (arXiv 2407.11594, section 2.3);
`neighbourhood` and `prior` are what it lacks: new embeddings near known ones, and embeddings without any source image.
`unconditional` is for denoisers that know no embeddings.

A strategy lists its images as plain requests, and makes the tokens of a few of them at a time. What a request gets
depends on the run's seed and its number alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_numbers
from ..diffusion.token_sampler import TokenSampler
from ..errors import SettingsError
from ..fingerprint import network_sha256
from ..io.image_writer import trim_padding
from ..networks.conditioning import TokenScaler
from ..seeding import Purpose, derive_seed, sample_seed, torch_seed
from .source_table import SourceTable

CDIST_ROWS = 512  # sources whose distances to all others are in memory at a time


@dataclass(frozen=True)
class SampleRequest:
    """One image to make."""

    name: str  # unique in its run; the file's stem
    seed: int  # of the sample's noise
    sources: tuple[int, ...] = ()  # rows of the source table
    mix: float | None = None  # weight in [0, 1] of the second source; None where nothing is mixed
    label: str = ""  # that the image may keep; "" for none


class Strategy:
    """How the images of a run are chosen.

    Attributes:
        name: of the strategy.
        table: the sources; empty without.
        seed: of the run.
        settings: what a run must share to continue a folder; not the number of images where that may grow.
        shows_sources: the images are in part the sources themselves.
    """

    name = ""
    shows_sources = False

    def __init__(self, table: SourceTable | None, seed: int, **settings: Any) -> None:
        self.table = table or SourceTable([], [], [], torch.empty(0))
        self.seed = seed
        self.settings = settings if table is None else {"sources": table.digest(), **settings}

    def requests(self) -> list[SampleRequest]:
        """All images of the run, always in the same order."""
        raise NotImplementedError

    def tokens(self, requests: Sequence[SampleRequest]) -> Tensor:
        """Tokens [B, N, D] of some of them, as the encoder would give them; here those of their first source."""
        return self.table.tokens[[request.sources[0] for request in requests]]

    def images(self, sampler: Any, requests: Sequence[SampleRequest]) -> Sequence[Tensor]:
        """Some of the images, each [1, H, W] in [0, 1] on the CPU, as an `ImageSampler` draws them."""
        return list(sampler.sample(self.tokens(requests), [request.seed for request in requests]))

    def _request(
        self, number: int, sources: tuple[int, ...] = (), mix: float | None = None, label: str = ""
    ) -> SampleRequest:
        """Name and seed follow from the number."""
        return SampleRequest(f"{self.name}_{number:06d}", sample_seed(self.seed, number), sources, mix, label)


class Variation(Strategy):
    """Several images per source, from its own tokens: `reconstruction` in the paper, section 2.3.1."""

    name = "variation"

    def __init__(self, table: SourceTable, num_per_source: int, seed: int, **settings: Any) -> None:
        check_numbers(num_per_source=num_per_source)
        self.num_per_source = num_per_source
        super().__init__(table, seed, num_per_source=num_per_source, **settings)

    def requests(self) -> list[SampleRequest]:
        """Source by source; each keeps its source's label."""
        sources = [source for source in range(len(self.table)) for _ in range(self.num_per_source)]
        return [
            self._request(number, (source,), label=self.table.labels[source]) for number, source in enumerate(sources)
        ]


class Neighbourhood(Variation):
    """Images of embeddings near a source's: its tokens plus noise as long as the way to its k-th nearest neighbour.

    The noise is Gaussian with the covariance of the sources: in other directions there are no radiographs. Lengths are
    those of standardised tokens, all N × D of an image together; the noise has `noise_scale` times the distance to
    neighbour k = `num_neighbours`, or to the furthest where there are fewer.
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
        check_numbers(num_neighbours=num_neighbours)
        if not 0.0 <= noise_scale < math.inf:
            raise SettingsError(f"noise_scale: expected a number of at least 0, found {noise_scale}")
        if len(table) < 2:
            raise SettingsError(f"neighbourhood: expected at least two sources, found {len(table)}")
        super().__init__(table, num_per_source, seed, num_neighbours=num_neighbours, noise_scale=noise_scale)
        self.scaler = scaler
        scaled = scaler.scale(table.tokens.to(scaler.tokens_mean)).cpu()
        self._centred = scaled - scaled.mean(0)
        flat = scaled.flatten(1)
        # The smallest distance is the one to itself.
        rank = 1 + min(num_neighbours, len(table) - 1)
        nearest = [torch.cdist(rows, flat).kthvalue(rank, dim=1).values for rows in flat.split(CDIST_ROWS)]
        self._reach = noise_scale * torch.cat(nearest)

    def tokens(self, requests: Sequence[SampleRequest]) -> Tensor:
        """The sources' tokens with noise, drawn from each request's seed."""
        moved = []
        for request in requests:
            generator = torch.Generator().manual_seed(derive_seed(request.seed, Purpose.STRATEGY))
            weights = torch.randn(len(self._centred), generator=generator)
            noise = torch.tensordot(weights, self._centred, dims=1)
            moved.append(noise * (self._reach[request.sources[0]] / noise.norm().clamp_min(1e-12)))
        shift = torch.stack(moved).to(self.scaler.tokens_std) * self.scaler.tokens_std
        return super().tokens(requests) + shift.cpu()


class Prior(Strategy):
    """Images without a source: tokens drawn from the prior, for a label, which the images carry, or for any (None)."""

    name = "prior"

    def __init__(self, token_sampler: TokenSampler, num_samples: int, label: str | None, seed: int) -> None:
        token_sampler.check_label(label)
        self.token_sampler, self.label = token_sampler, label
        check_numbers(num_samples=num_samples)
        self.num_samples = num_samples
        sampler, digest = token_sampler.sampler, network_sha256(token_sampler.prior)
        drawn = {"prior_method": sampler.method, "prior_steps": len(sampler.timesteps)}
        guided = {"label": label, "prior_guidance_scale": sampler.guidance_scale}
        super().__init__(None, seed, prior_sha256=digest, **drawn, **guided)

    def requests(self) -> list[SampleRequest]:
        """Numbered."""
        return [self._request(number, label=self.label or "") for number in range(self.num_samples)]

    def tokens(self, requests: Sequence[SampleRequest]) -> Tensor:
        """Drawn from each request's seed."""
        return self.token_sampler.sample([torch_seed(each.seed, Purpose.PRIOR) for each in requests], self.label)


class Unconditional(Strategy):
    """Images from noise alone, by a `PixelImageSampler`; a folder may be given more later.

    `trim` cuts off the black padding, so that the images have the aspect ratio of radiographs, and sizes of their own;
    with other batches a pixel next to the threshold may move their border by a line.
    """

    name = "unconditional"

    def __init__(self, num_samples: int, seed: int, trim: bool) -> None:
        check_numbers(num_samples=num_samples)
        self.num_samples = num_samples
        self.trim = trim
        super().__init__(None, seed, trim=trim)

    def requests(self) -> list[SampleRequest]:
        """Numbered."""
        return [SampleRequest(f"{number:04d}", sample_seed(self.seed, number)) for number in range(self.num_samples)]

    def images(self, sampler: Any, requests: Sequence[SampleRequest]) -> Sequence[Tensor]:
        """Each of the size that trimming leaves."""
        images = list(sampler.sample([request.seed for request in requests]))
        return [trim_padding(image) for image in images] if self.trim else images
