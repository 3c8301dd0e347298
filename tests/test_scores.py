"""AUC on cases that can be counted by hand, ties included."""

import numpy as np
import pytest

from common.experiments.benefit_scores import ScoreError, auc_by_class, scores_of


def two(scores):
    """Probabilities of two classes from the score of the second."""
    scores = np.array(scores)
    return np.stack([1 - scores, scores], axis=1)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 1.0),
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], 0.0),
        ([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1], 0.5),  # all tied
        ([0.2, 0.6, 0.6, 0.9], [0, 0, 1, 1], 3.5 / 4),  # one pair of four tied
        ([0.3, 0.3, 0.3, 0.7, 0.1], [1, 0, 0, 1, 0], (1 + 0.5 + 0.5 + 3) / 6),
    ],
)
def test_the_share_of_pairs_in_order_with_ties_as_a_half(scores, labels, expected):
    assert auc_by_class(two(scores), np.array(labels)) == pytest.approx([expected, expected])


def test_the_macro_average_weighs_classes_alike():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
    labels = np.array([0, 1, 1, 2, 2])
    by_class = auc_by_class(probabilities, labels)
    pairs = [
        sum((a > b) + (a == b) / 2 for a in p[labels == c] for b in p[labels != c])
        / ((labels == c).sum() * (labels != c).sum())
        for c, p in enumerate(probabilities.T)
    ]
    assert by_class == pytest.approx(pairs)
    scores = scores_of(probabilities, labels)
    assert scores["auc"] == pytest.approx(np.mean(pairs)) and scores["accuracy"] == pytest.approx(0.8)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ScoreError, match=r"no image of class \[1\]"):
        auc_by_class(two([0.1, 0.2]), np.array([0, 0]))
    with pytest.raises(ScoreError, match="not finite"):
        auc_by_class(two([0.1, np.nan]), np.array([0, 1]))
