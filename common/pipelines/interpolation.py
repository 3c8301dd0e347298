"""Images between two sources: which pairs, which label, and the tokens between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..checks import check_numbers
from ..errors import SettingsError
from ..networks.conditioning import TokenScaler
from ..seeding import Purpose, derive_seed
from .source_table import SourceTable
from .strategies import SampleRequest, Strategy

InterpolationMode = Literal["lerp", "slerp"]


class Interpolation(Strategy):
    """Images between two sources of different patients that share a label (section 2.3.2 of the paper, after MixUp).

    The paper gives an image the label of its nearer end where the two differ, and names that as what corrupted its
    labels; here a label is kept only when both ends have the same. Several labels are written `a|b`, in any order;
    sharing one of them is enough to be paired. Sources without label pair with each other.

    The mode `lerp` is the straight line between the tokens, standardised by the denoiser's scaler, `slerp` the great
    circle, token by token, with the norm going along linearly. The second source's weight is uniform in `mix_range`.
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
        low, high = mix_range
        if mode not in get_args(InterpolationMode) or not 0.0 <= low <= high <= 1.0:
            raise SettingsError(
                f"interpolation: expected the mode lerp or slerp and 0 <= low <= high <= 1, found {mode}, {mix_range}"
            )
        check_numbers(num_samples=num_samples)
        self.num_samples = num_samples
        self.mode, self.mix_range, self.scaler = mode, (low, high), scaler
        super().__init__(table, seed, interpolation_mode=mode, mix_range=[low, high])

    def requests(self) -> list[SampleRequest]:
        """Source by source, each with a random partner; no pair comes again before all pairs have come.

        Raises:
            SettingsError: no two sources of different patients share a label.
        """
        pairs = _Pairs(self.table)
        low, high = self.mix_range
        found: list[SampleRequest] = []
        for number in range(self.num_samples):
            generator = np.random.default_rng(derive_seed(self.seed, Purpose.STRATEGY, number))
            ends = pairs.draw(generator)
            label = self.table.labels[ends[0]] if pairs.names[ends[0]] == pairs.names[ends[1]] else ""
            mix = min(max(round(float(generator.uniform(low, high)), 6), low), high)
            found.append(self._request(number, ends, mix, label))
        return found

    def tokens(self, requests: Sequence[SampleRequest]) -> Tensor:
        """Between the two ends, in standardised tokens."""
        ends = self.table.tokens[torch.tensor([request.sources for request in requests])]
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
            raise SettingsError(
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


def slerp(first: Tensor, second: Tensor, mix: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) over the last axis; directions turn evenly, norms go along linearly.

    From `first` to `second` [..., D], whose weight `mix` is broadcast; the straight line where the two directions are
    (nearly) the same or opposite.
    """
    norms = first.norm(dim=-1, keepdim=True), second.norm(dim=-1, keepdim=True)
    units = first / norms[0], second / norms[1]
    # Kahan's angle; the arccosine loses half its digits where directions are nearly the same or opposite.
    distance, sum_length = ((units[0] + sign * units[1]).norm(dim=-1, keepdim=True) for sign in (-1, 1))
    angle = 2.0 * torch.atan2(distance, sum_length)
    sine = angle.sin()
    weights = ((1.0 - mix) * angle).sin() / sine, (mix * angle).sin() / sine
    turned = weights[0] * units[0] + weights[1] * units[1]
    round_way = turned * torch.lerp(norms[0], norms[1], mix.expand_as(norms[0]))
    return torch.where(sine.abs() > 1e-4, round_way, torch.lerp(first, second, mix.expand_as(first)))
