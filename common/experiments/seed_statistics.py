"""Statistics over the seeds of an experiment: mean and spread, and differences paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from scipy import stats


def mean_sd(values: Iterable[float]) -> dict[str, Any]:
    """Mean, the sample's standard deviation (None for fewer than two) and n; mean None for none."""
    counted = list(values)
    return {
        "mean": statistics.fmean(counted) if counted else None,
        "sd": statistics.stdev(counted) if len(counted) > 1 else None,
        "n": len(counted),
    }


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any]:
    """Difference to a baseline over the seeds that both have, and whether chance alone could make it.

    Args:
        values: by seed.
        baseline: by seed.

    Returns:
        `mean_sd` of the differences, and "p", two-sided, of the paired t-test; None for fewer than two seeds or
        differences without spread.
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    found = mean_sd(differences)
    p = float(stats.ttest_1samp(differences, 0.0).pvalue) if found["sd"] else math.nan
    return {**found, "p": p if math.isfinite(p) else None}


def by_seed(values: Mapping[int, float]) -> dict[str, float]:
    """The values of all seeds, in order, as JSON can hold them."""
    return {str(seed): value for seed, value in sorted(values.items())}


def fixed(value: Mapping[str, Any] | None, decimals: int, sign: str = "", factor: float = 1) -> str:
    """`mean_sd` as a table's cell, "" for none; sign "+" writes the sign of positive ones."""
    if not value or value["mean"] is None:
        return ""
    mean = f"{factor * value['mean']:{sign}.{decimals}f}"
    return mean if value["sd"] is None else f"{mean} ± {factor * value['sd']:.{decimals}f}"


def percent(value: Mapping[str, Any] | None, sign: str = "") -> str:
    """`mean_sd` of fractions as a table's cell in percent, likewise."""
    return fixed(value, 1, sign, factor=100)
