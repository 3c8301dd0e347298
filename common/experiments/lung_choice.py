"""Which segments are lungs: chosen without ground truth, or, for comparison with the paper, by Dice with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from .position_prior import EllipsePrior, pose_evidence, pose_weights, posed_probability

BORDER_SHARE = 0.02  # of the shorter side: what counts as the image's border

Array = NDArray[np.floating]
Labels = NDArray[np.integer]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ChoiceSettings:
    """Hyperparameters of the choice; all but `min_area` and `softness` are weights, 0 switches a term off.

    Attributes:
        pose_association, pose_contrast, pose_deviation: of the pose of the position prior, see `pose_weights`.
        softness: of the ellipses' edge, in units of their radius.
        position: of the log odds that the posed prior gives.
        attention: of the prior as the affinity spreads it.
        darkness: of the mean darkness relative to the body.
        symmetry: of how far the mirror image of a component is lung.
        border: against components that lie along the image's border.
        bias: added to every score; a component is lung where its score is above 0.
        min_area: of a connected lung, share of the image.
    """

    pose_association: float = 80.0
    pose_contrast: float = 0.0
    pose_deviation: float = 0.1
    softness: float = 0.1
    position: float = 1.0
    attention: float = 0.5
    darkness: float = 0.0
    symmetry: float = 0.0
    border: float = 0.0
    bias: float = 0.0
    min_area: float = 0.01


@dataclass(frozen=True)
class Evidence:
    """What one segmentation of one image offers to the choice.

    Attributes:
        components: connected parts of segments, numbered from 0, [H, W].
        affinity: [h·w, h·w], each row sums to 1.
        grid: h, w.
        darkness: [H, W], (median - grey value) / spread within the central image.
        poses: of `pose_evidence`.
        prior: the two ellipses.
    """

    components: Labels
    affinity: Array
    grid: tuple[int, int]
    darkness: Array
    poses: tuple[Array, Array]
    prior: EllipsePrior


def gather(image: Array, labels: Labels, affinity: Array, grid: tuple[int, int], prior: EllipsePrior) -> Evidence:
    """Collect the evidence from an image [H, W] in [0, 1] and its segments [H, W]; the rest as in `Evidence`."""
    dark = relative_darkness(image)
    poses = pose_evidence(prior, affinity, resized(dark, grid))
    return Evidence(connected_parts(labels), affinity, grid, dark, poses, prior)


def choose_lungs(evidence: Evidence, settings: ChoiceSettings) -> Mask:
    """Lungs [H, W]: components whose score is above 0, holes filled, small ones left out; no ground truth is seen."""
    components = evidence.components
    lung = posed_prior(evidence, settings)
    score = settings.bias + settings.position * _mean(components, _logit(resized(lung, components.shape)))
    if settings.attention:
        score = score + settings.attention * _mean(components, _spread(evidence, lung))
    if settings.darkness:
        score = score + settings.darkness * _mean(components, evidence.darkness)
    if settings.border:
        score = score - settings.border * _mean(components, _border(components.shape))
    if settings.symmetry:
        mirrored = (score > 0)[components][:, ::-1]
        score = score + settings.symmetry * (_mean(components, mirrored) - 0.5)
    return tidied((score > 0)[components], settings.min_area)


def posed_prior(evidence: Evidence, settings: ChoiceSettings) -> Array:
    """How likely lung is by place alone, after the prior was moved to this image, `position_prior.COARSE` in size."""
    weights = pose_weights(evidence.poses, settings.pose_association, settings.pose_contrast, settings.pose_deviation)
    return posed_probability(evidence.prior, weights, settings.softness)


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


def relative_darkness(image: Array) -> Array:
    """(Median - grey value) / spread, both of the central three quarters, [H, W]; 0 for an image without contrast."""
    height, width = image.shape
    middle = image[height // 8 : height - height // 8, width // 8 : width - width // 8]
    low, high = np.percentile(middle, [15, 85])
    return (np.median(middle) - image) / max(high - low, 1e-6)


def resized(values: Array, size: tuple[int, ...], antialias: bool = True) -> Array:
    """[h, w] to [H, W], bilinear, by default antialiased where it gets smaller."""
    if values.shape == tuple(size):
        return values
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    return F.interpolate(tensor, size=tuple(size), mode="bilinear", antialias=antialias)[0, 0].numpy()


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


def _spread(evidence: Evidence, lung: Array) -> Array:
    """The prior, passed twice through the affinity: what a place looks at, and what that looks at; standardised."""
    values = resized(lung, evidence.grid).ravel()
    values = evidence.affinity @ (evidence.affinity @ values)
    values = (values - values.mean()) / max(float(values.std()), 1e-6)
    return resized(values.reshape(evidence.grid), evidence.components.shape)


def _mean(components: Labels, values: NDArray) -> Array:
    flat = components.ravel()
    return np.bincount(flat, weights=values.ravel().astype(np.float64)) / np.bincount(flat)


def _logit(probability: Array) -> Array:
    clipped = np.clip(probability, 0.0025, 0.9975)
    return np.log(clipped / (1 - clipped))


def _border(size: tuple[int, ...]) -> Mask:
    width = max(1, round(BORDER_SHARE * min(size)))
    border = np.ones(size, bool)
    border[width:-width, width:-width] = False
    return border
