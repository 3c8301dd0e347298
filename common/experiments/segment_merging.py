"""From self-attention to segments: DiffSeg's iterative merging (arXiv 2308.12469, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-12  # probabilities below it count as this, so that the logarithm is finite


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Half the sum of both Kullback-Leibler divergences (equation 3), in nats, between rows [M, K] and [N, K]: [M, N].

    Rows sum to 1.
    """
    log_first, log_second = first.clamp_min(TINY).log(), second.clamp_min(TINY).log()
    own = (first * log_first).sum(1)[:, None] + (second * log_second).sum(1)[None]
    crossed = first @ log_second.T + log_first @ second.T
    return ((own - crossed) / 2).clamp_min(0.0)


def anchor_indices(size: tuple[int, int], anchors: int) -> Tensor:
    """Positions, row by row, of an M × M grid of anchors in a map of R_h × R_w; fewer where M exceeds a side."""
    rows, columns = (
        torch.unique(((torch.arange(anchors) + 0.5) * length / anchors).long().clamp(max=length - 1)) for length in size
    )
    return (rows[:, None] * size[1] + columns[None]).flatten()


def merge(attention: Tensor, anchors: int, threshold: float, max_rounds: int = 10) -> Tensor:
    """Merge attention maps into object proposals.

    First each anchor's map becomes the mean of all maps nearer than the threshold; then, round by round, the first map
    left takes all that are nearer than the threshold, until a round changes nothing. Nothing is drawn at random.

    Args:
        attention: [R_h, R_w, R_h, R_w], every query's map sums to 1.
        anchors: M, per side.
        threshold: of the symmetric KL divergence, in nats; 0 leaves the anchors' own maps.
        max_rounds: of merging.

    Returns:
        [S, R_h, R_w], each map sums to 1.
    """
    rows, columns = attention.shape[:2]
    maps = attention.reshape(rows * columns, rows * columns)
    chosen = maps[anchor_indices((rows, columns), anchors)]
    near = symmetric_kl(chosen, maps) < threshold
    near_sum = near.float() @ maps
    count = near.sum(1, keepdim=True)
    proposals = torch.where(count > 0, near_sum / count.clamp_min(1), chosen)
    for _ in range(max_rounds):
        merged = _one_round(proposals, threshold)
        if len(merged) == len(proposals):
            break
        proposals = merged
    return proposals.reshape(-1, rows, columns)


def _one_round(proposals: Tensor, threshold: float) -> Tensor:
    near = symmetric_kl(proposals, proposals) < threshold
    left = torch.ones(len(proposals), dtype=torch.bool)
    merged = []
    for index in range(len(proposals)):
        if left[index]:
            group = near[index] & left
            group[index] = True
            merged.append(proposals[group].mean(0))
            left &= ~group
    return torch.stack(merged)


def label_map(proposals: Tensor, size: tuple[int, int]) -> Tensor:
    """Which proposal is strongest at each pixel, maps upsampled bilinearly: int64 [H, W] (DiffSeg's suppression).

    Args:
        proposals: [S, R_h, R_w].
        size: H, W.
    """
    best = torch.full(size, -1.0)
    labels = torch.zeros(size, dtype=torch.int64)
    for number, proposal in enumerate(proposals):  # one at a time: all at a large image's size would not fit in memory
        values = F.interpolate(proposal[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        stronger = values > best
        best = torch.where(stronger, values, best)
        labels[stronger] = number
    return labels
