"""Ratios of held-out images, and what they say of others: p-values, flags, and the chance of so many flags."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

TAIL_SHARE = 0.1  # of the held-out images: those nearest to the training set, which the tail is fitted to
CENSORED_SHARE = 0.2  # of the tail: the very nearest, of which the fit only takes that they are nearer than the others
TAIL_MIN_HELD_OUT = 20  # with fewer held-out images nothing is fitted

Floats = NDArray[np.floating]


class HeldOutRatios:
    """Ratios of n held-out images, and what they say of others.

    `p_value` and `flags` need no more than that a sample which copies nothing is like a held-out image. The p-value has
    a floor of 1 / (n + 1), so it cannot tell an exact copy from chance among many samples. `tail_p_value` can: the
    number of neighbours within a distance grows as a power of it, so -log(ratio) has an exponential tail.
    Let u be the (m + 1)-th smallest ratio, t = log(u / ratio) of the sample, and S the sum of log(u / ratio) over the m
    nearest held-out images, where the c nearest of all count as the next one (censored), as they may be copies
    themselves. Then p = (m + 1) / (n + 1) · (1 + t / S)^-(m - c), which includes the uncertainty of the fitted scale.
    """

    def __init__(self, ratios: Floats, rate: float) -> None:
        self.sorted = np.sort(ratios)
        self.rank = math.floor(rate * (len(ratios) + 1) + 1e-9)  # flag what is nearer than the rank-th nearest

    @property
    def threshold(self) -> float | None:
        """Ratios below this are flagged; None where n is too small to flag anything."""
        return float(self.sorted[self.rank - 1]) if self.rank else None

    def p_value(self, ratio: Floats) -> Floats:
        """Conformal p-values [M]."""
        return (1 + np.searchsorted(self.sorted, ratio, side="right")) / (len(self.sorted) + 1)

    def flags(self, ratio: Floats) -> NDArray[np.bool_]:
        """Whether p_value is within the rate."""
        return np.searchsorted(self.sorted, ratio, side="right") < self.rank

    def tail_p_value(self, ratio: Floats) -> Floats:
        """Extrapolated p-values [M]; the conformal ones outside the tail and where n is too small for a fit."""
        n, m = len(self.sorted), round(TAIL_SHARE * len(self.sorted))
        start, censored = self.sorted[m], round(CENSORED_SHARE * m)
        total = float(np.log(start / np.maximum(self.sorted[:m], self.sorted[censored])).sum())
        if n < TAIL_MIN_HELD_OUT or total <= 0:
            return self.p_value(ratio)
        excess = np.log(start / np.minimum(ratio, start))
        tail = (m + 1) / (n + 1) * (1 + excess / total) ** (censored - m)
        return np.where(ratio < start, tail, self.p_value(ratio))

    def count_p_value(self, flagged: NDArray[np.bool_], groups: Sequence[Hashable]) -> float:
        """Chance that so many samples or more are flagged, if samples are like held-out images.

        The threshold itself is an order statistic of n images, so the flagged among G new ones are beta-binomial
        (G, rank, n + 1 - rank), exactly; a binomial test with the nominal rate would take the threshold for known and
        call too many sets copied. Samples made from the same source are not independent: each group of them counts
        once, by the share of it that is flagged.
        """
        if not self.rank:
            return 1.0
        sizes = Counter(groups)
        count = math.floor(sum(flag / sizes[group] for flag, group in zip(flagged, groups, strict=True)) + 1e-9)
        law = stats.betabinom(len(sizes), self.rank, len(self.sorted) + 1 - self.rank)
        return float(min(1.0, law.sf(count - 1)))


def nearer(samples: Floats, held_out: Floats, groups: Sequence[Hashable]) -> tuple[float, float]:
    """Probability that a sample's value is below a held-out one, and its one-sided Mann-Whitney p.

    Of samples of one group, which are not independent, the first counts.
    """
    _, first = np.unique(codes(groups), return_index=True)
    test = stats.mannwhitneyu(samples[first], held_out, alternative="less")
    return 1 - float(test.statistic) / (len(first) * len(held_out)), float(test.pvalue)


def codes(values: Sequence[Hashable]) -> NDArray[np.int64]:
    """A number for each different value, in the order of their first places."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([numbers[value] for value in values], dtype=np.int64)
