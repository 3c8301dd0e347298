"""Where lungs usually are: two ellipses, mirror images of each other, moved to where an image's own structure is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Size = tuple[int, int]
Array = NDArray[np.floating]
FIT_STEPS = (0.06, -0.1, 0.06, -0.04)  # of the simplexes, one after the other, in the units of the ellipses
COARSE = (64, 64)  # the mean over poses is smooth, so it is made small and enlarged
NEGLIGIBLE = 1e-4  # weight of a pose that is left out


@dataclass(frozen=True)
class Pose:
    """How a patient's lungs differ from the usual ones.

    Attributes:
        column, row: shift, in image widths and heights.
        width, height: factors on the extent.
    """

    column: float = 0.0
    row: float = 0.0
    width: float = 1.0
    height: float = 1.0

    def deviation(self) -> float:
        """Squared distance from the usual pose, in units of a common deviation."""
        shift = (self.column / 0.04) ** 2 + (self.row / 0.06) ** 2
        return shift + ((self.width - 1) / 0.1) ** 2 + ((self.height - 1) / 0.13) ** 2


USUAL = Pose()
COLUMNS, ROWS = (-0.08, -0.04, 0.0, 0.04, 0.08), (-0.12, -0.06, 0.0, 0.06, 0.12)
WIDTHS, HEIGHTS = (0.8, 0.9, 1.0, 1.1), (0.75, 0.87, 1.0, 1.13, 1.25)
POSES = tuple(Pose(*values) for values in itertools.product(COLUMNS, ROWS, WIDTHS, HEIGHTS))


@dataclass(frozen=True)
class EllipsePrior:
    """Two ellipses about the middle column; lengths in image heights (rows) and widths (columns).

    Attributes:
        row: of both centres.
        offset: of a centre from the middle column.
        half_height, half_width: semi-axes.
        tilt: radians; positive leans the upper ends towards the middle.
    """

    row: float = 0.48
    offset: float = 0.28
    half_height: float = 0.36
    half_width: float = 0.21
    tilt: float = 0.2

    def radius(self, size: Size, pose: Pose = USUAL) -> NDArray[np.float64]:
        """Distance to the nearer centre [H, W] in units of the ellipse: below 1 inside, above 1 outside."""
        rows, columns = ((np.arange(length) + 0.5) / length for length in size)
        down = (rows[:, None] - self.row - pose.row) / pose.height
        across = (columns[None] - 0.5 - pose.column) / pose.width
        squares = []
        for side in (-1, 1):
            outward = side * across - self.offset
            short = np.cos(self.tilt) * outward - np.sin(self.tilt) * down
            long = np.sin(self.tilt) * outward + np.cos(self.tilt) * down
            squares.append((short / self.half_width) ** 2 + (long / self.half_height) ** 2)
        return np.sqrt(np.minimum(*squares))

    def mask(self, size: Size, pose: Pose = USUAL) -> NDArray[np.bool_]:
        """The inside of both, [H, W]."""
        return self.radius(size, pose) < 1

    def probability(self, size: Size, softness: float, pose: Pose = USUAL) -> NDArray[np.float64]:
        """A soft edge [H, W]: logistic in the radius, 0.5 on the ellipse, `softness` its width."""
        return 1 / (1 + np.exp(np.clip((self.radius(size, pose) - 1) / softness, -50, 50)))


def dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Dice coefficient; 1 where both are empty."""
    total = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / total if total else 1.0


def fit_ellipses(masks: Sequence[NDArray[np.bool_]]) -> EllipsePrior:
    """The ellipses of the best mean Dice with lung masks (of training patients), by Nelder-Mead.

    Dice over pixels has flat steps on which a simplex collapses, so the search starts anew from what it found.
    """
    best = np.array(astuple(EllipsePrior()))

    def loss(values: NDArray[np.float64]) -> float:
        prior = EllipsePrior(*values)
        return -float(np.mean([dice(prior.mask(mask.shape), mask) for mask in masks]))

    for step in FIT_STEPS:
        simplex = np.vstack([best, best + step * np.eye(len(best))])
        found = minimize(loss, best, method="Nelder-Mead", options={"initial_simplex": simplex, "maxiter": 150})
        best = found.x
    return EllipsePrior(*(float(value) for value in best))


# ---- the pose of an image, without any mask --------------------------------------------------------------------------


def pose_evidence(prior: EllipsePrior, affinity: Array, darkness: Array) -> tuple[Array, Array]:
    """What speaks for each of `POSES`: normalised association, as in normalised cuts (Shi & Malik 2000), and darkness.

    Affinity is [h·w, h·w], each row sums to 1, such as an aggregated self-attention; darkness [h, w], standardised.

    Returns:
        [P], 0 to 2, how much lungs attend to lungs and the rest to the rest; [P], mean darkness inside less outside.
    """
    inside = _inside(prior, darkness.shape)
    count = inside.sum(1)
    rest = inside.shape[1] - count
    within = ((inside @ affinity) * inside).sum(1)
    from_rest = inside @ affinity.sum(0) - within  # what the rest sends to the inside ...
    rest_within = rest - from_rest  # ... and so, as rows sum to 1, not to itself
    dark = inside @ darkness.ravel()
    contrast = dark / np.maximum(count, 1) - (darkness.sum() - dark) / np.maximum(rest, 1)
    return within / np.maximum(count, 1) + rest_within / np.maximum(rest, 1), contrast


def pose_weights(evidence: tuple[Array, Array], association: float, contrast: float, deviation: float) -> Array:
    """Softmax over poses [P] of the weighted evidence, less the pose's own deviation from the usual."""
    deviations = np.array([pose.deviation() for pose in POSES])
    score = association * evidence[0] + contrast * evidence[1] - deviation * deviations
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
