"""Images between two sources: which pairs, which label, and the tokens between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..networks.conditioning import TokenScaler
from ..seeding import Purpose, derive_seed
from .sample_request import SampleRequest, StrategyError, at_least_one, numbered_request
from .slerp import slerp
from .source_table import SourceTable

InterpolationMode = Literal["lerp", "slerp"]


class Interpolation:
    """Images between two sources of different patients that share a label (section 2.3.2 of the paper, after MixUp).

    The paper gives an image the label of its nearer end where the two differ, and names that as what corrupted its
    labels; here a label is kept only when both ends have the same. Several labels are written `a|b`, in any order;
    sharing one of them is enough to be paired. Sources without label pair with each other.

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
        mode: InterpolationMode,
        mix_range: tuple[float, float],
        scaler: TokenScaler,
        seed: int,
    ) -> None:
        if mode not in get_args(InterpolationMode):
            raise StrategyError(f"interpolation_mode: expected lerp or slerp, found '{mode}'")
        low, high = mix_range
        if not 0.0 <= low <= high <= 1.0:
            raise StrategyError(f"mix_range: expected 0 <= low <= high <= 1, found {mix_range}")
        self.table: SourceTable | None = table
        self._sources = table
        self.num_samples = at_least_one("num_samples", num_samples)
        self.mode = mode
        self.mix_range = (low, high)
        self.scaler = scaler
        self.seed = seed
        self.settings = {"sources": table.digest(), "interpolation_mode": mode, "mix_range": [low, high]}

    def requests(self) -> list[SampleRequest]:
        """Source by source, each with a random partner; no pair comes again before all pairs have come.

        Raises:
            StrategyError: no two sources of different patients share a label.
        """
        pairs = _Pairs(self._sources)
        low, high = self.mix_range
        found: list[SampleRequest] = []
        for number in range(self.num_samples):
            generator = np.random.default_rng(derive_seed(self.seed, Purpose.STRATEGY, number))
            ends = pairs.draw(generator)
            agree = pairs.names[ends[0]] == pairs.names[ends[1]]
            label = self._sources.labels[ends[0]] if agree else ""
            mix = min(max(round(float(generator.uniform(low, high)), 6), low), high)
            found.append(numbered_request(self.name, number, self.seed, sources=ends, mix=mix, label=label))
        return found

    def tokens(self, requests: Sequence[SampleRequest]) -> Tensor:
        """Between the two ends, in standardised tokens."""
        ends = self._sources.tokens[torch.tensor([request.sources for request in requests])]
        first, second = (self.scaler.scale(ends[:, end].to(self.scaler.tokens_mean)) for end in (0, 1))
        mix = torch.tensor([request.mix for request in requests]).view(-1, 1, 1).to(first)
        between = slerp(first, second, mix) if self.mode == "slerp" else torch.lerp(first, second, mix)
        return self.scaler.unscale(between).cpu()


class _Pairs:
    """Pairs of sources of different patients that share a label; none comes again before all have come."""

    def __init__(self, table: SourceTable) -> None:
        self.names = [frozenset(label.split("|")) for label in table.labels]
        self._patients = np.array(table.patient_ids)
        groups: dict[str, list[int]] = {}
        for source, names in enumerate(self.names):
            for name in names:
                groups.setdefault(name, []).append(source)
        self._groups = {name: np.array(members) for name, members in groups.items()}
        paired = [members for members in self._groups.values() if len(set(self._patients[members])) > 1]
        if not paired:
            raise StrategyError(
                f"interpolation: among {len(table)} sources no two of different patients share a label; "
                "give more sources, or a manifest.csv with labels that repeat"
            )
        self._firsts = sorted({int(source) for members in paired for source in members})
        self._turns = deque(self._firsts)
        self._used: dict[int, set[int]] = {}

    def draw(self, generator: np.random.Generator) -> tuple[int, int]:
        """The source whose turn it is, and one of the partners that it has not met yet."""
        while True:
            if not self._turns:  # all pairs have come: from the start
                self._turns, self._used = deque(self._firsts), {}
            first = self._turns.popleft()
            fresh = [other for other in self._partners(first) if other not in self._used.get(first, ())]
            if fresh:
                second = int(generator.choice(fresh))
                self._used.setdefault(first, set()).add(second)
                self._used.setdefault(second, set()).add(first)
                self._turns.append(first)
                return first, second

    def _partners(self, source: int) -> list[int]:
        others = np.unique(np.concatenate([self._groups[name] for name in self.names[source]]))
        return others[self._patients[others] != self._patients[source]].tolist()
