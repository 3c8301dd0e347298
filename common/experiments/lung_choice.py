"""Which segments are lungs: chosen without ground truth, or, for comparison with the paper, by Dice with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .chest_atlas import SIDE, ChestAtlas, Pose, resized

INCLUDED, EXCLUDED = "included", "excluded"  # what lies behind the heart's shadow, among the lungs
BINS, SMOOTH_BINS = 48, 2.0  # of the histograms of grey values, and the sd that they are smoothed with
GREY_BLUR = 1 / 170  # of the longer side: ribs and noise are finer than lungs
CORE = 0.9  # how sure the atlas is of a place whose grey value is taken for that of a lung
BETWEEN = (slice(9, 27), slice(14, 18))  # rows and columns of an atlas: the mediastinum, from the arch to the dome

Array = NDArray[np.floating]
Labels = NDArray[np.integer]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ChoiceSettings:
    """Hyperparameters of the choice; the first four are weights, 0 switches a term off."""

    attention: float = 0.3  # of the atlas as the affinity spreads it, beside the log odds that it gives itself
    appearance: float = 0.7  # of the log-likelihood ratio of a pixel's grey value, lung against the rest of this chest
    bias: float = 0.0  # added to every score; what has a score above 0 is lung
    segments: float = 0.5  # how much the mean over its segment counts for a pixel, the rest is its own; in [0, 1]
    min_area: float = 0.01  # of a connected lung, share of the image


@dataclass(frozen=True)
class Evidence:
    """What one segmentation of one chest offers to the choice."""

    components: Labels  # connected parts of segments, numbered from 0, [H, W]
    lung: Array  # how likely each place is lung by the atlas alone, [H, W]
    spread: Array  # the same as self-attention spreads it, standardised, [H, W]
    appearance: Array  # log-likelihood ratio of the grey values, [H, W]
    air: Array  # above 0 where the grey value is nearer to that of air than to that of the heart, [H, W]


def gather(
    image: Array, labels: Labels, affinity: Array, grid: tuple[int, int], atlas: ChestAtlas, pose: Pose
) -> Evidence:
    """Collect the evidence.

    Args:
        image: [H, W] in [0, 1].
        labels: segments [H, W].
        affinity: [h·w, h·w] between the places of the grid, each row sums to 1.
        grid: h, w.
        atlas: to be laid over the image ...
        pose: ... like this.
    """
    size = image.shape[0], image.shape[1]
    lung = np.clip(pose.laid(atlas.lung, size), 0, 1)
    shown = pose.laid(np.ones((SIDE, SIDE)), size) > 0.5
    grey = ndimage.gaussian_filter(image, GREY_BLUR * max(size))
    looked_at = affinity @ (affinity @ resized(lung, grid).ravel())  # what a place looks at, and what that looks at
    looked_at = (looked_at - looked_at.mean()) / max(float(looked_at.std()), 1e-6)
    spread = resized(looked_at.reshape(grid), size)
    return Evidence(connected_parts(labels), lung, spread, likelihood_ratio(grey, lung, shown), _air(grey, lung, pose))


def choose_lungs(evidence: Evidence, settings: ChoiceSettings, heart: str) -> Mask:
    """Lungs [H, W]: where the score is above 0, holes filled, small parts left out; no ground truth is seen.

    With the heart excluded, what is nearer in grey to the mediastinum between the lungs than to the lungs' core does
    not count: the heart's shadow, which lies before the left lung, and the domes of the diaphragm.
    """
    score = np.log(np.clip(evidence.lung, 0.0025, 0.9975) / np.clip(1 - evidence.lung, 0.0025, 0.9975))
    score = score + settings.attention * evidence.spread + settings.appearance * evidence.appearance + settings.bias
    score = settings.segments * _mean(evidence.components, score) + (1 - settings.segments) * score
    return tidied((score > 0) & ((heart == INCLUDED) | (evidence.air > 0)), settings.min_area)


def laid_lungs(evidence: Evidence, settings: ChoiceSettings, heart: str) -> Mask:
    """The atlas alone, as it was laid over the image, [H, W]."""
    return tidied((evidence.lung > 0.5) & ((heart == INCLUDED) | (evidence.air > 0)), settings.min_area)


def pick_by_dice(labels: Labels, truth: Mask) -> Mask:
    """The optimistic protocol of DiNO-Diffusion (arXiv 2407.11594): segments picked by Dice **with the ground truth**.

    Segments join in the order of their own Dice while the union's Dice rises. The finer the segments, the nearer this
    comes to a copy of the truth; it says how well segments follow lungs, not how well lungs are found.
    """
    numbers, counts = np.unique(labels, return_counts=True)
    hits = ndimage.sum_labels(truth, labels, numbers)
    total, area, hit, best = int(truth.sum()), 0.0, 0.0, 0.0
    chosen = []
    for place in np.argsort(-hits / (counts + total), kind="stable"):
        joined = 2 * (hit + hits[place]) / (area + counts[place] + total)
        if joined > best:
            best, area, hit = joined, area + counts[place], hit + hits[place]
            chosen.append(numbers[place])
    return np.isin(labels, chosen)


def connected_parts(labels: Labels) -> Labels:
    """Number the connected parts of all segments from 0 on, [H, W]."""
    parts = np.zeros(labels.shape, np.int64)
    total = 0
    for label in np.unique(labels):
        numbered, count = ndimage.label(labels == label)
        parts += np.where(numbered > 0, numbered + total, 0)
        total += count
    return parts - 1


def likelihood_ratio(grey: Array, lung: Array, shown: Mask) -> Array:
    """How much likelier each grey value [H, W] is in lungs than beside them, as a logarithm.

    Both histograms are of this image, each pixel counted as lung as far as `lung` [H, W] in [0, 1] says so, over what
    is `shown` [H, W] of the chest.
    """
    if not shown.any():
        return np.zeros(grey.shape)
    edges = np.linspace(grey[shown].min(), grey[shown].max() + 1e-6, BINS + 1)
    places = np.clip(np.digitize(grey, edges) - 1, 0, BINS - 1)
    densities = []
    for weights in (lung, 1 - lung):
        counts = np.bincount(places[shown], weights=weights[shown], minlength=BINS)
        counts = ndimage.gaussian_filter1d(counts, SMOOTH_BINS)
        densities.append(counts / max(float(counts.sum()), 1e-6) + 0.1 / BINS)
    return np.log(densities[0] / densities[1])[places]


def tidied(mask: Mask, min_area: float) -> Mask:
    """Holes filled, connected parts below `min_area` (share of the image) left out; the largest always stays."""
    numbered, count = ndimage.label(ndimage.binary_fill_holes(mask))
    if count == 0:
        return mask
    areas = np.bincount(numbered.ravel())
    areas[0] = 0
    keep = (areas >= min_area * mask.size) | (areas == areas.max())
    keep[0] = False
    return keep[numbered]


def _air(grey: Array, lung: Array, pose: Pose) -> Array:
    """Midway between the medians of the lungs' core and of the mediastinum, less the grey value, [H, W].

    1 everywhere, which excludes nothing, without either of them or where the mediastinum is not the brighter one.
    """
    strip = np.zeros((SIDE, SIDE))
    strip[BETWEEN] = 1
    parts = lung > CORE, pose.laid(strip, (grey.shape[0], grey.shape[1])) > 0.5
    core, between = (np.median(grey[part]) if part.any() else np.nan for part in parts)
    return (core + between) / 2 - grey if between > core else np.ones(grey.shape)


def _mean(components: Labels, values: NDArray) -> Array:
    flat = components.ravel()
    return (np.bincount(flat, weights=values.ravel().astype(np.float64)) / np.bincount(flat))[components]
