"""Distances between two sets of image features [N, D], in float64: Fréchet, kernel, nearest neighbours.

Every function takes NumPy arrays or tensors, needs no network and depends on nothing but its arguments. Features of
images that are treated alike on both sides are the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..progress import ProgressBar

Array: TypeAlias = NDArray[np.float64]
Features: TypeAlias = "np.ndarray | Tensor"  # [N, D]

CHUNK = 1024  # rows of a distance matrix computed at once


def frechet_distance(a: Features, b: Features) -> float:
    """Squared Fréchet distance of Gaussians fitted to both sets (Heusel et al. 2017, arXiv:1706.08500, Eq. 6).

    |mean_a − mean_b|² + tr(cov_a + cov_b − 2 (cov_a cov_b)^½), with covariances over N − 1. With X, Y the centred
    features over √(N − 1), the last trace is the sum of the singular values of X Yᵀ: no matrix is squared, so it is
    exact for few images (N < D, singular covariances) too. Sets with N > D are first reduced by QR to D rows.

    It is biased upwards at small N: two halves of one distribution are apart by about c / N, with c growing with the
    effective dimension. Compare only figures of the same N, and see `frechet_distance_extrapolated`.

    Returns:
        The distance, in squared units of the features; 0 for a set and itself (to 1e-13 of the variance).

    Raises:
        ValueError: not two matrices of the same width, too few rows, or values that are not finite.
    """
    x, y = _check("frechet_distance", a, b)
    mean_distance = np.square(x.mean(0) - y.mean(0)).sum()
    factor_a, factor_b = _covariance_factor(x), _covariance_factor(y)
    cross = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    return float(max(0.0, mean_distance + np.square(factor_a).sum() + np.square(factor_b).sum() - 2 * cross))


def frechet_distance_extrapolated(a: Features, b: Features, seed: int = 0, num_sizes: int = 15) -> float:
    """Fréchet distance extrapolated to infinitely many images (Chong & Forsyth 2020, arXiv:1911.07023).

    A line through the distance of random subsets against 1 / n, n from half of the smaller set to all of it; its value
    at 1 / n = 0. Other than in the paper, both sets shrink, as a small real set is biased like a small fake one.

    Nearly unbiased once n exceeds the dimension, where the bias is linear in 1 / n. With far fewer images than
    dimensions (hundreds against 2,048) much of the bias stays, though less than in the distance itself; and it is
    noisier than that: it may be negative where both distributions agree.

    Raises:
        ValueError: as `frechet_distance`, or fewer than 8 rows.
    """
    x, y = _check("frechet_distance_extrapolated", a, b, least=8)
    count = min(len(x), len(y))
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(count / 2, count, num_sizes).round().astype(int))
    distances = [
        frechet_distance(rng.choice(x, size, replace=False), rng.choice(y, size, replace=False)) for size in sizes
    ]
    return float(np.polyfit(1 / sizes, distances, deg=1)[1])


def frechet_leverages(a: Features, b: Features) -> tuple[Array, Array]:
    """How much the Fréchet distance would fall without each image, to first order: what it hangs on.

    With d = x − mean_a and T the map that carries the Gaussian of a to that of b, an image of a has (2 (mean_a −
    mean_b)·d + dᵀ(I − T)d − its mean over a) / N, and one of b likewise. dᵀTd is read off the singular vectors whose
    values sum up to the last trace of `frechet_distance`, so this costs as much as one distance. Without hundreds of
    images more than dimensions it ranks rather than predicts: the true fall is larger.

    Returns:
        Of the N and M rows, in squared units of the features; negative where the distance would rise.

    Raises:
        ValueError: as `frechet_distance`.
    """
    x, y = _check("frechet_leverages", a, b)
    shift, found = x.mean(0) - y.mean(0), []
    for mine, other, towards in ((x, y, shift), (y, x, -shift)):
        centred = mine - mine.mean(0)
        rotation, factor = _rotation_and_factor(mine)
        other_factor = _covariance_factor(other)
        left, _, right = np.linalg.svd(factor @ other_factor.T, full_matrices=False)
        carried = rotation @ (left @ right @ other_factor) * np.sqrt(len(mine) - 1)
        values = (2 * centred @ towards + (centred * (centred - carried)).sum(1)) / len(mine)
        found.append(values - values.mean())
    return found[0], found[1]


def gaussian_mmd(a: Features, b: Features) -> float:
    """Unbiased MMD² with a Gaussian kernel, CMMD (Jayasumana et al. 2024, arXiv:2401.09603) on any features.

    The kernel is bounded, so that an image weighs at most 2 / N whatever it shows, and nothing is assumed of the
    distributions. Its bandwidth is the median distance between images of a over √2 (Gretton et al. 2012), where CMMD
    takes 10, made for CLIP's unit vectors: two images of a have a kernel of about 1 / e.

    Returns:
        0 on average over draws where both distributions agree, so single figures may be negative; at most 2.

    Raises:
        ValueError: as `frechet_distance`.
    """
    x, y = _check("gaussian_mmd", a, b)
    centre = x.mean(0)  # smaller norms, smaller rounding errors
    x, y = x - centre, y - centre
    some = x[:: -(-len(x) // CHUNK)]
    distances = np.concatenate([found for _, found in _squared_distances(some, some)])
    scale = np.median(distances[np.triu_indices(len(some), 1)]) or 1.0

    def total(u: Array, v: Array) -> float:
        return sum(float(np.exp(-found / scale).sum()) for _, found in _squared_distances(u, v))

    within = sum((total(z, z) - len(z)) / (len(z) * (len(z) - 1)) for z in (x, y))
    return within - 2 * total(x, y) / (len(x) * len(y))


def precision_recall_density_coverage(real: Features, fake: Features, k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al. 2020).

    Around each point lies a closed ball that reaches to its k-th nearest neighbour in its own set. Precision: fakes
    within any real ball. Recall: reals within any fake ball. Density: real balls that a fake lies in, on average, over
    k. Coverage: reals whose ball holds a fake (arXiv:2002.09797, Eqs. 3 and 4).

    All four depend on N, k and the effective dimension, and equal distributions do not reach 1 in precision and recall
    (one outlier's huge ball can raise both). Density is 1 and coverage 1 − 2⁻ᵏ on average for equal distributions of
    equal N. So compare only figures of the same N and k, and with those of two sets of real images.

    k is 5 in Naeem et al., 3 in Kynkäänniemi et al.

    Returns:
        "precision", "recall", "density", "coverage": shares in [0, 1]; density alone may exceed 1.

    Raises:
        ValueError: as `frechet_distance`, k below 1 or too few rows for it.
    """
    if k < 1:
        raise ValueError(f"precision_recall_density_coverage: found k = {k}; expected 1 or more.")
    x, y = _check("precision_recall_density_coverage", real, fake, least=k + 1)
    centre = (x.mean(0) + y.mean(0)) / 2  # smaller norms, smaller rounding errors
    x, y = x - centre, y - centre
    real_radii, fake_radii = _squared_radii(x, k), _squared_radii(y, k)
    num_balls = np.zeros(len(y))  # real ones that each fake is in
    num_recalled = num_covered = 0
    for rows, distances in _squared_distances(x, y):
        inside = distances <= real_radii[rows, None]
        num_balls += inside.sum(0)
        num_covered += int(inside.any(1).sum())
        num_recalled += int((distances <= fake_radii).any(1).sum())
    return {
        "precision": float((num_balls > 0).mean()),
        "recall": num_recalled / len(x),
        "density": float(num_balls.mean()) / k,
        "coverage": num_covered / len(x),
    }


def bootstrap_interval(
    metric: Callable[[Array, Array], float],
    a: Features,
    b: Features,
    num_resamples: int = 100,
    seed: int = 0,
    level: float = 0.95,
    progress: bool = False,
) -> tuple[float, float]:
    """Interval for a metric of two sets, from resampling the rows of both with replacement.

    A resample has fewer different rows than the set, so a metric with a small-N bias comes out larger on all of them:
    the plain quantiles can miss the estimate altogether. They are therefore shifted by the resamples' mean minus the
    estimate. The interval says how far the figure would vary over other sets of the same sizes; the bias at these
    sizes is in it, not around it. Rows count as independent. 100 resamples do for two digits of the interval's width;
    `level` is the share of them inside.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: num_resamples below 2, level outside (0, 1), or sets that do not fit.
    """
    if num_resamples < 2 or not 0 < level < 1:
        raise ValueError(
            f"bootstrap_interval: found {num_resamples} resamples, level {level}; expected 2 or more, a share in (0, 1)"
        )
    x, y = _check("bootstrap_interval", a, b)
    rng = np.random.default_rng(seed)
    values = [
        metric(x[rng.integers(len(x), size=len(x))], y[rng.integers(len(y), size=len(y))])
        for _ in ProgressBar(range(num_resamples), desc="bootstrap", unit="resample", disable=not progress)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) - np.mean(values) + metric(x, y)
    return float(low), float(high)


def _check(name: str, a: Features, b: Features, least: int = 2) -> tuple[Array, Array]:
    """Both as float64 matrices of the same width and at least so many rows."""
    arrays = [np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64) for x in (a, b)]
    first, second = arrays
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{name}: found features {first.shape} and {second.shape}; expected two matrices [N, D] of the same D."
        )
    if min(len(first), len(second)) < least:
        raise ValueError(
            f"{name}: found {len(first)} and {len(second)} images; expected at least {least} on each side. Use more."
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError(f"{name}: found features that are not finite; look for broken images among them.")
    return first, second


def _covariance_factor(x: Array) -> Array:
    """A matrix F of at most D rows with Fᵀ F = cov(x)."""
    centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(x) > x.shape[1] else centred


def _rotation_and_factor(x: Array) -> tuple[Array, Array]:
    """Q with orthonormal columns and F of `_covariance_factor`: Q F is x, centred, over √(N − 1)."""
    centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    return np.linalg.qr(centred) if len(x) > x.shape[1] else (np.eye(len(x)), centred)


def _squared_distances(x: Array, y: Array) -> Iterator[tuple[NDArray[np.int64], Array]]:
    """Rows of x, chunk by chunk, with their squared distances to all of y."""
    norms = np.square(y).sum(1)
    for start in range(0, len(x), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(x)))
        yield rows, np.square(x[rows]).sum(1)[:, None] + norms - 2 * x[rows] @ y.T


def _squared_radii(x: Array, k: int) -> Array:
    """Squared distance from each row to its k-th nearest other row."""
    radii = np.empty(len(x))
    for rows, distances in _squared_distances(x, x):
        distances[np.arange(len(rows)), rows] = np.inf  # itself
        radii[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii
