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
class Samples:
    """Training data of a probe.

    Attributes:
        features: [N, D].
        labels: [N], classes from 0 on.
        weights: [N], any positive scale.
    """

    features: Array
    labels: NDArray[np.int64]
    weights: Array

    def keep(self, chosen: NDArray[np.bool_]) -> Samples:
        """Some of them."""
        return Samples(self.features[chosen], self.labels[chosen], self.weights[chosen])


@dataclass(frozen=True)
class Probe:
    """A linear classifier.

    Attributes:
        coefficients: [D + 1, C] of standardised features; the last row is the bias.
        mean: [D] that features are standardised with.
        sd: [D] likewise.
    """

    coefficients: Array
    mean: Array
    sd: Array

    def log_probabilities(self, features: Array) -> Array:
        """[N, D] to [N, C]."""
        return log_softmax(_with_bias((features - self.mean) / self.sd) @ self.coefficients, axis=1)

    def probabilities(self, features: Array) -> Array:
        """[N, D] to [N, C]."""
        return np.exp(self.log_probabilities(features))


def standardisation(samples: Samples) -> tuple[Array, Array]:
    """Weighted mean and standard deviation of every feature."""
    share = samples.weights / samples.weights.sum()
    mean = share @ samples.features
    return mean, np.sqrt(share @ (samples.features - mean) ** 2).clip(SMALLEST_SD)


def fit_path(
    samples: Samples, num_classes: int, strengths: Sequence[float] = L2_STRENGTHS, start: Probe | None = None
) -> list[Probe]:
    """A probe for every strength of L2, the minimum of mean cross-entropy + strength / 2 · |W - centre|².

    Args:
        samples: to fit.
        num_classes: C.
        strengths: strong ones first.
        start: pulls the coefficients to its own instead of to zero, and lends its standardisation: fine-tuning of a
            linear classifier.
    """
    mean, sd = standardisation(samples) if start is None else (start.mean, start.sd)
    inputs = _with_bias((samples.features - mean) / sd)
    centre = np.zeros((inputs.shape[1], num_classes)) if start is None else start.coefficients
    targets = np.eye(num_classes)[samples.labels]
    share = (samples.weights / samples.weights.sum())[:, None]
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
    """The place of the strength whose probes give held-out images the highest likelihood.

    Args:
        fit: number of a fold to the probes of all strengths, fitted without it.
        held_out: features and labels of every fold.

    Returns:
        Its place among the strengths, and the mean negative log-likelihood reached, nats.
    """
    totals: Array | None = None
    for fold, (features, labels) in enumerate(held_out):
        rows = np.arange(len(labels))
        losses = np.array([-each.log_probabilities(features)[rows, labels].sum() for each in fit(fold)])
        totals = losses if totals is None else totals + losses
    if totals is None:
        raise ValueError("choose_strength: found no fold; expected some")
    best = int(totals.argmin())
    return best, float(totals[best] / sum(len(labels) for _, labels in held_out))


def _with_bias(features: Array) -> Array:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)
