"""The trials of the experiment: what a classifier is trained on, how much of it, and by which seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .benefit_recipes import INTERPOLATION, PRIOR, VARIATION

UNAUGMENTED, REAL, MIXED, SYNTHETIC, PRETRAINED = "real_unaugmented", "real", "mixed", "synthetic", "pretrained"
REAL_REGIMES = (UNAUGMENTED, REAL)
SYNTHETIC_REGIMES = (MIXED, SYNTHETIC, PRETRAINED)
REGIMES = (*REAL_REGIMES, *SYNTHETIC_REGIMES)
UNLABELLED = "unlabelled"  # real images of the training split without their labels: what samples compete with
STRATEGIES = (VARIATION, INTERPOLATION, PRIOR, UNLABELLED)
NO_STRATEGY = "none"


@dataclass(frozen=True)
class Trial:
    """One training and its score.

    Attributes:
        classifier: probe or densenet.
        regime: what it is trained on.
        strategy: of the synthetic images; "none" without them.
        ratio: synthetic images per real one; 0 without them.
        size: real images whose labels are known.
        seed: of the subset, and of all else that is random.
    """

    classifier: str
    regime: str
    strategy: str
    ratio: int
    size: int
    seed: int


@dataclass(frozen=True)
class Example:
    """One image to train on.

    Attributes:
        path: of the file.
        label: class, from 0 on.
        sources: paths of the real images that it shows or was made from; empty for samples of the prior.
    """

    path: str
    label: int
    sources: tuple[str, ...] = ()


def grid(
    classifiers: Sequence[str],
    regimes: Sequence[str],
    strategies: Sequence[str],
    ratios: Sequence[int],
    sizes: Sequence[int],
    seeds: Sequence[int],
) -> list[Trial]:
    """All trials, small ones first and seed by seed, so that what a stopped experiment leaves compares all regimes."""
    real = [(regime, NO_STRATEGY, 0) for regime in regimes if regime in REAL_REGIMES]
    added = [regime for regime in regimes if regime in SYNTHETIC_REGIMES]
    kinds = real + [(regime, strategy, ratio) for strategy in strategies for ratio in ratios for regime in added]
    return [
        Trial(name, *kind, size, seed)
        for size in sorted(sizes)
        for seed in seeds
        for name in classifiers
        for kind in kinds
    ]


def stages(regime: str, num_steps: int) -> list[tuple[str, int]]:
    """What a network is trained on, one after the other, and for how many steps: `num_steps` together in every regime.

    Returns:
        Pairs of "real", "synthetic" or "both", and steps.

    Raises:
        ValueError: no such regime.
    """
    if regime in REAL_REGIMES:
        return [("real", num_steps)]
    if regime == MIXED:
        return [("both", num_steps)]
    if regime == SYNTHETIC:
        return [("synthetic", num_steps)]
    if regime == PRETRAINED:
        return [("synthetic", num_steps // 2), ("real", num_steps - num_steps // 2)]
    raise ValueError(f"regime: expected one of {', '.join(REGIMES)}, found {regime!r}")
