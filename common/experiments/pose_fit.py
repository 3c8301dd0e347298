"""Move the position prior to where an image's own structure wants it, without any mask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .position_prior import POSES, EllipsePrior, Size

COARSE = (64, 64)  # the mean over poses is smooth, so it is made small and enlarged
NEGLIGIBLE = 1e-4  # weight of a pose that is left out

Array = NDArray[np.floating]


@dataclass(frozen=True)
class PoseEvidence:
    """What speaks for each of `POSES`.

    Attributes:
        association: how much lungs attend to lungs and the rest to the rest, [P], 0 to 2.
        contrast: mean darkness inside less outside, [P].
    """

    association: Array
    contrast: Array


def pose_evidence(prior: EllipsePrior, affinity: Array, darkness: Array) -> PoseEvidence:
    """Judge each pose by normalised association, as in normalised cuts (Shi & Malik 2000), and by darkness.

    Args:
        prior: the two ellipses.
        affinity: [h·w, h·w], each row sums to 1, such as an aggregated self-attention.
        darkness: [h, w], standardised.
    """
    inside = _inside(prior, darkness.shape)
    count = inside.sum(1)
    rest = inside.shape[1] - count
    within = ((inside @ affinity) * inside).sum(1)
    from_rest = inside @ affinity.sum(0) - within  # what the rest sends to the inside ...
    rest_within = rest - from_rest  # ... and so, as rows sum to 1, not to itself
    association = within / np.maximum(count, 1) + rest_within / np.maximum(rest, 1)
    dark = inside @ darkness.ravel()
    contrast = dark / np.maximum(count, 1) - (darkness.sum() - dark) / np.maximum(rest, 1)
    return PoseEvidence(association, contrast)


def pose_weights(evidence: PoseEvidence, association: float, contrast: float, deviation: float) -> Array:
    """Softmax over poses [P] of the weighted evidence, less the pose's own deviation from the usual."""
    deviations = np.array([pose.deviation() for pose in POSES])
    score = association * evidence.association + contrast * evidence.contrast - deviation * deviations
    weights = np.exp(score - score.max())
    return weights / weights.sum()


def posed_probability(prior: EllipsePrior, weights: Array, softness: float) -> NDArray[np.float64]:
    """Mean over poses of the soft ellipses, `COARSE` in size: how likely lung is at each place of this image."""
    kept = weights > NEGLIGIBLE
    mean = weights[kept] @ _soft(prior, softness)[kept] / weights[kept].sum()
    return mean.reshape(COARSE)


@lru_cache(maxsize=4)
def _inside(prior: EllipsePrior, size: Size) -> Array:
    return np.stack([prior.mask(size, pose).ravel() for pose in POSES]).astype(np.float32)


@lru_cache(maxsize=4)
def _soft(prior: EllipsePrior, softness: float) -> Array:
    return np.stack([prior.probability(COARSE, softness, pose).ravel() for pose in POSES]).astype(np.float32)
