"""What every method has to beat: two ellipses, mirror images of each other, in the same place in all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

FIT_STEPS = (0.06, -0.1, 0.06, -0.04)  # of the simplexes, one after the other, in the units of the ellipses


@dataclass(frozen=True)
class EllipsePrior:
    """Two ellipses about the middle column; lengths in image heights (rows) and widths (columns)."""

    row: float = 0.48  # of both centres
    offset: float = 0.28  # of a centre from the middle column
    half_height: float = 0.36  # semi-axes
    half_width: float = 0.21
    tilt: float = 0.2  # radians; positive leans the upper ends towards the middle

    def mask(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The inside of both, [H, W]."""
        rows, columns = ((np.arange(length) + 0.5) / length for length in size)
        down = rows[:, None] - self.row
        squares = []
        for side in (-1, 1):
            outward = side * (columns[None] - 0.5) - self.offset
            short = np.cos(self.tilt) * outward - np.sin(self.tilt) * down
            long = np.sin(self.tilt) * outward + np.cos(self.tilt) * down
            squares.append((short / self.half_width) ** 2 + (long / self.half_height) ** 2)
        return np.minimum(*squares) < 1


def dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Dice coefficient; 1 where both are empty."""
    total = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / total if total else 1.0


def fit_ellipses(masks: Sequence[NDArray[np.bool_]]) -> EllipsePrior:
    """The ellipses of the best mean Dice with lung masks, by Nelder-Mead.

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
