"""Four ways to choose the embedding that an image is generated from.

`variation` and `interpolation` are DiNO-Diffusion's (arXiv 2407.11594, section 2.3); `neighbourhood` and `prior` are
what it lacks: new embeddings near known ones, and embeddings without any source image.

A strategy lists its samples as plain requests, and makes the tokens of a few of them at a time. What a request gets
depends on the run's seed and its number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from .conditioning import TokenScaler
from .errors import UserError
from .fingerprint import network_sha256
from .seeding import Purpose, derive_seed
from .source_table import SourceTable
from .token_sampler import TokenSampler

StrategyName = Literal["variation", "interpolation", "neighbourhood", "prior"]
SEED_BITS = 32  # torch's CPU generator reads no more of a seed


class StrategyError(UserError, ValueError):
    """The sources or knobs do not allow this strategy."""


@dataclass(frozen=True)
class SampleRequest:
    """One image to make.

    Attributes:
        name: unique in its run; the file's stem.
        seed: of the sample's noise.
        sources: rows of the source table.
        mix: weight in [0, 1] of the second source; None where nothing is mixed.
        label: that the image may keep; "" for none.
    """

    name: str
    seed: int
    sources: tuple[int, ...] = ()
    mix: float | None = None
    label: str = ""


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
        self.num_per_source = _positive("num_per_source", num_per_source)
        self.seed = seed
        self.settings = {"sources": table.digest(), "num_per_source": num_per_source}

    def requests(self) -> list[SampleRequest]:
        """Source by source; each keeps its source's label."""
        return _requests_per_source(self.name, self._sources, self.num_per_source, self.seed)

    def tokens(self, requests: Sequence[SampleRequest]) -> Tensor:
        """The sources' own tokens."""
        return self._sources.tokens[[request.sources[0] for request in requests]]


class Interpolation:
    """Images between two sources of different patients that share a label (section 2.3.2 of the paper, after MixUp).

    The paper gives an image the label of its nearer end where the two differ, and names that as what corrupted its
    labels; here a label is kept only when both ends have the same. Several labels are written `a|b`; sharing one of
    them is enough to be paired. Sources without label pair with each other.

    Args:
        table: the sources.
        num_samples: images.
        mode: `lerp` is the straight line between the standardised tokens, `slerp` the great circle, token by token,
            with the norm going along linearly.
        mix_range: the second source's weight is uniform in it.
        scaler: of the denoiser, which standardises tokens.
        seed: of the run.
    """

    name = "interpolation"

    def __init__(
        self,
        table: SourceTable,
        num_samples: int,
        mode: Literal["lerp", "slerp"],
        mix_range: tuple[float, float],
        scaler: TokenScaler,
        seed: int,
    ) -> None:
        if mode not in ("lerp", "slerp"):
            raise StrategyError(f"interpolation_mode: expected lerp or slerp, found '{mode}'")
        low, high = mix_range
        if not 0.0 <= low <= high <= 1.0:
            raise StrategyError(f"mix_range: expected 0 <= low <= high <= 1, found {mix_range}")
        self.table: SourceTable | None = table
        self._sources = table
        self.num_samples = _positive("num_samples", num_samples)
        self.mode = mode
        self.mix_range = (low, high)
        self.scaler = scaler
        self.seed = seed
        self.settings = {"sources": table.digest(), "interpolation_mode": mode, "mix_range": [low, high]}

    def requests(self) -> list[SampleRequest]:
        """Pairs in a random order, none twice before all partners of its first end were tried once in vain.

        Raises:
            StrategyError: no two sources of different patients share a label.
        """
        partners = [self._partners(source) for source in range(len(self._sources))]
        firsts = [source for source, others in enumerate(partners) if others]
        if not firsts:
            raise StrategyError(
                f"interpolation: among {len(self._sources)} sources no two of different patients share a label; "
                "give more sources, or a manifest.csv with labels that repeat"
            )
        found: list[SampleRequest] = []
        used: set[frozenset[int]] = set()
        for number in range(self.num_samples):
            generator = np.random.default_rng(derive_seed(self.seed, Purpose.STRATEGY, number))
            first = firsts[number % len(firsts)]
            fresh = [other for other in partners[first] if frozenset((first, other)) not in used]
            second = int(generator.choice(fresh or partners[first]))
            used.add(frozenset((first, second)))
            labels = {self._sources.labels[first], self._sources.labels[second]}
            label = labels.pop() if len(labels) == 1 else ""
            mix = round(float(generator.uniform(*self.mix_range)), 6)
            found.append(_request(self.name, number, self.seed, sources=(first, second), mix=mix, label=label))
        return found

    def tokens(self, requests: Sequence[SampleRequest]) -> Tensor:
        """Between the two ends, in standardised tokens."""
        ends = self._sources.tokens[torch.tensor([request.sources for request in requests])]
        first, second = (self.scaler.scale(ends[:, end].to(self.scaler.tokens_mean)) for end in (0, 1))
        mix = torch.tensor([request.mix for request in requests]).view(-1, 1, 1).to(first)
        between = slerp(first, second, mix) if self.mode == "slerp" else torch.lerp(first, second, mix)
        return self.scaler.unscale(between).cpu()

    def _partners(self, source: int) -> list[int]:
        mine = set(self._sources.labels[source].split("|"))
        return [
            other
            for other in range(len(self._sources))
            if self._sources.patient_ids[other] != self._sources.patient_ids[source]
            and mine & set(self._sources.labels[other].split("|"))
        ]


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
        if noise_scale < 0.0:
            raise StrategyError(f"noise_scale: expected 0 or more, found {noise_scale}")
        if len(table) < 2:
            raise StrategyError(f"neighbourhood: expected at least two sources, found {len(table)}")
        self.table: SourceTable | None = table
        self._sources = table
        self.num_per_source = _positive("num_per_source", num_per_source)
        self.scaler = scaler
        self.seed = seed
        scaled = scaler.scale(table.tokens.to(scaler.tokens_mean)).cpu()
        self._centred = scaled - scaled.mean(0)
        flat = scaled.flatten(1)
        nearest = torch.cdist(flat, flat).sort(dim=1).values  # column 0 is the distance to itself
        self._reach = noise_scale * nearest[:, min(_positive("num_neighbours", num_neighbours), len(table) - 1)]
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
        self.num_samples = _positive("num_samples", num_samples)
        self.label = label
        self.seed = seed
        token_sampler.check_label(label)
        self.settings = {"label": label, "prior_sha256": network_sha256(token_sampler.prior)}

    def requests(self) -> list[SampleRequest]:
        """Numbered."""
        label = self.label or ""
        return [_request(self.name, number, self.seed, label=label) for number in range(self.num_samples)]

    def tokens(self, requests: Sequence[SampleRequest]) -> Tensor:
        """Drawn from each request's seed."""
        seeds = [derive_seed(request.seed, Purpose.PRIOR) % 2**SEED_BITS for request in requests]
        return self.token_sampler.sample(seeds, self.label)


def slerp(first: Tensor, second: Tensor, mix: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) over the last axis; directions turn evenly, norms go along linearly.

    Args:
        first: [..., D].
        second: [..., D].
        mix: weight of `second`, broadcast; 0 gives `first`.

    Returns:
        [..., D]; the straight line where the two directions are (nearly) the same or opposite.
    """
    norms = first.norm(dim=-1, keepdim=True), second.norm(dim=-1, keepdim=True)
    cosine = ((first / norms[0]) * (second / norms[1])).sum(-1, keepdim=True).clamp(-1.0, 1.0)
    angle = cosine.acos()
    sine = angle.sin()
    weights = ((1.0 - mix) * angle).sin() / sine, (mix * angle).sin() / sine
    turned = weights[0] * first / norms[0] + weights[1] * second / norms[1]
    round_way = turned * torch.lerp(norms[0], norms[1], mix.expand_as(norms[0]))
    return torch.where(sine.abs() > 1e-4, round_way, torch.lerp(first, second, mix.expand_as(first)))


def make_strategy(
    name: StrategyName,
    sources: Callable[[], SourceTable],
    token_sampler: Callable[[], TokenSampler],
    scaler: TokenScaler,
    seed: int,
    num_samples: int,
    num_per_source: int,
    label: str | None,
    interpolation_mode: Literal["lerp", "slerp"],
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
    table = sources()
    if name == "variation":
        return Variation(table, num_per_source, seed)
    if name == "interpolation":
        return Interpolation(table, num_samples, interpolation_mode, mix_range, scaler, seed)
    return Neighbourhood(table, num_per_source, num_neighbours, noise_scale, scaler, seed)


def _requests_per_source(strategy: str, table: SourceTable, num_per_source: int, seed: int) -> list[SampleRequest]:
    sources = [source for source in range(len(table)) for _ in range(num_per_source)]
    return [
        _request(strategy, number, seed, sources=(source,), label=table.labels[source])
        for number, source in enumerate(sources)
    ]


def _request(
    strategy: str, number: int, seed: int, sources: tuple[int, ...] = (), mix: float | None = None, label: str = ""
) -> SampleRequest:
    sample_seed = derive_seed(seed, Purpose.SAMPLING, number) % 2**SEED_BITS
    return SampleRequest(f"{strategy}_{number:06d}", sample_seed, sources, mix, label)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise StrategyError(f"{name}: expected at least 1, found {value}")
    return value
