"""Multinomial logistic regression on features: weighted samples, L2 to any centre, its strength chosen by folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

Array = NDArray[np.float64]
L2_STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # of standardised features; strong first, each starts the next
MAX_ITERATIONS = 200
SMALLEST_SD = 1e-6


@dataclass(frozen=True)
class Probe:
    """A linear classifier."""

    coefficients: Array  # [D + 1, C] of standardised features; the last row is the bias
    mean: Array  # [D] that features are standardised with
    sd: Array  # [D] likewise

    def log_probabilities(self, features: Array) -> Array:
        """[N, D] to [N, C]."""
        return log_softmax(_with_bias((features - self.mean) / self.sd) @ self.coefficients, axis=1)

    def probabilities(self, features: Array) -> Array:
        """[N, D] to [N, C]."""
        return np.exp(self.log_probabilities(features))


def standardisation(features: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted mean and standard deviation [D] of every feature of [N, D]."""
    share = weights / weights.sum()
    mean = share @ features
    return mean, np.sqrt(share @ (features - mean) ** 2).clip(SMALLEST_SD)


def fit_path(
    features: Array,
    labels: NDArray[np.int64],
    weights: Array,
    num_classes: int,
    strengths: Sequence[float] = L2_STRENGTHS,
    start: Probe | None = None,
) -> list[Probe]:
    """A probe for every strength of L2, the minimum of mean cross-entropy + strength / 2 · |W - centre|².

    Args:
        features: [N, D].
        labels: [N], classes from 0 on.
        weights: [N] of the samples, any positive scale.
        num_classes: C.
        strengths: strong ones first.
        start: pulls the coefficients to its own instead of to zero, and lends its standardisation: fine-tuning of a
            linear classifier.
    """
    mean, sd = standardisation(features, weights) if start is None else (start.mean, start.sd)
    inputs = _with_bias((features - mean) / sd)
    centre = np.zeros((inputs.shape[1], num_classes)) if start is None else start.coefficients
    targets = np.eye(num_classes)[labels]
    share = (weights / weights.sum())[:, None]
    penalised = np.ones((inputs.shape[1], 1))
    penalised[-1] = 1e-3  # the bias: just enough to make the minimum unique

    def loss(flat: Array, strength: float) -> tuple[float, Array]:
        moved = flat.reshape(centre.shape)
        logits = inputs @ moved
        away = penalised * (moved - centre)
        value = -(share * targets * log_softmax(logits, axis=1)).sum() + strength / 2 * (away * (moved - centre)).sum()
        slope = inputs.T @ (share * (softmax(logits, axis=1) - targets)) + strength * away
        return float(value), slope.ravel()

    found, current = [], centre
    for strength in strengths:
        options = {"maxiter": MAX_ITERATIONS}
        fitted = minimize(loss, current.ravel(), (strength,), "L-BFGS-B", jac=True, options=options)
        current = fitted.x.reshape(centre.shape)
        found.append(Probe(current, mean, sd))
    return found


def choose_strength(
    fit: Callable[[int], Sequence[Probe]], held_out: Sequence[tuple[Array, NDArray[np.int64]]]
) -> tuple[int, float]:
    """The place of the strength whose probes give held-out images the highest likelihood, and its mean loss, nats.

    Args:
        fit: number of a fold to the probes of all strengths, fitted without it.
        held_out: features and labels of every fold; at least one.
    """
    losses = [
        [-each.log_probabilities(features)[np.arange(len(labels)), labels].sum() for each in fit(fold)]
        for fold, (features, labels) in enumerate(held_out)
    ]
    totals = np.sum(losses, axis=0)
    best = int(totals.argmin())
    return best, float(totals[best] / sum(len(labels) for _, labels in held_out))


def _with_bias(features: Array) -> Array:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)
