"""What self-attention has to beat: clusters of DINO patch tokens, and a threshold on grey values."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2, whiten
from torch import Tensor
from torch.nn import functional as F


def kmeans_labels(
    patch_tokens: Tensor, grid: tuple[int, int], size: tuple[int, int], clusters: int, seed: int
) -> NDArray[np.int64]:
    """K-means (k-means++ start) on standardised patch tokens, clusters enlarged bilinearly: labels [H, W].

    Args:
        patch_tokens: [N, D], row by row.
        grid: rows and columns of patches, whose product is N.
        size: H, W.
        clusters: K.
        seed: of the start.
    """
    tokens = whiten(patch_tokens.double().numpy())
    _, nearest = kmeans2(tokens, clusters, iter=50, minit="++", seed=np.random.default_rng(seed))
    membership = F.one_hot(torch.from_numpy(nearest).long(), clusters).float().T.reshape(1, clusters, *grid)
    return F.interpolate(membership, size=size, mode="bilinear", align_corners=False)[0].argmax(0).numpy()


def otsu_threshold(image: NDArray[np.floating], bins: int = 256) -> float:
    """The grey value that splits the histogram with the largest between-class variance (Otsu 1979)."""
    counts, edges = np.histogram(image, bins=bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    moment = np.cumsum(counts * centres)
    mean_below = moment[:-1] / np.maximum(below, 1)
    mean_above = (moment[-1] - moment[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * (mean_below - mean_above) ** 2)])


def otsu_labels(image: NDArray[np.floating]) -> NDArray[np.int64]:
    """1 where darker than Otsu's threshold, else 0: [H, W]."""
    return (image < otsu_threshold(image)).astype(np.int64)


def membership_affinity(labels: NDArray[np.integer], grid: tuple[int, int]) -> NDArray[np.float32]:
    """An affinity for segments that have none of their own: equal among the places of a segment, 0 beyond.

    Args:
        labels: [H, W].
        grid: h, w.

    Returns:
        [h·w, h·w], each row sums to 1.
    """
    rows, columns = ((np.arange(n) * 2 + 1) * length // (2 * n) for n, length in zip(grid, labels.shape, strict=True))
    flat = labels[rows][:, columns].ravel()
    same = (flat[:, None] == flat[None]).astype(np.float32)
    return same / same.sum(1, keepdims=True)
