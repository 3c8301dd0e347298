"""How well a classifier ranks: the area under the ROC curve, each class against the rest."""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics import compute_roc_auc
from numpy.typing import NDArray

from ..errors import UserError


class ScoreError(UserError, ValueError):
    """The predictions cannot be scored."""


def auc_by_class(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> list[float]:
    """One-vs-rest AUC of every class; equal probabilities count half, as in the Mann-Whitney U statistic.

    Args:
        probabilities: [N, C], or any score that grows with them.
        labels: [N], classes 0 to C - 1.

    Raises:
        ScoreError: a class is missing among the labels, or a probability is not finite.
    """
    num_classes = probabilities.shape[1]
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    if missing:
        raise ScoreError(f"AUC: found no image of class {missing} among {len(labels)}; expected some of each")
    if not np.isfinite(probabilities).all():
        raise ScoreError("AUC: found probabilities that are not finite; the training has diverged, lower learning_rate")
    one_hot = torch.from_numpy(np.eye(num_classes)[labels])
    scores = torch.from_numpy(np.asarray(probabilities, dtype=np.float64))
    columns = zip(scores.T, one_hot.T, strict=True)
    return [float(np.asarray(compute_roc_auc(score, is_class))) for score, is_class in columns]


def scores_of(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, object]:
    """What a trial keeps: "auc", the mean over the classes (macro), "auc_by_class" and "accuracy"."""
    by_class = auc_by_class(probabilities, labels)
    accuracy = float((probabilities.argmax(1) == labels).mean())
    return {"auc": float(np.mean(by_class)), "auc_by_class": by_class, "accuracy": accuracy}
