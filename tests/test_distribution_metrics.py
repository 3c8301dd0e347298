"""Distances between feature sets against closed forms, SciPy and cases computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from common.evaluation import distribution_metrics
from common.evaluation.distribution_metrics import (
    bootstrap_interval,
    frechet_distance,
    frechet_distance_extrapolated,
    frechet_leverages,
    gaussian_mmd,
    precision_recall_density_coverage,
)


def normal(count, dimension, seed, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).standard_normal((count, dimension)) * scale + shift


def with_moments(count, mean, covariance, seed):
    """Samples whose mean and covariance (over N - 1) are exactly these."""
    x = normal(count, len(mean), seed)
    x -= x.mean(0)
    whitening = np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ whitening @ np.linalg.cholesky(covariance).T + mean


def by_sqrtm(a, b):
    """The textbook formula."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)


@pytest.mark.parametrize("count", [20, 500])  # fewer and more rows than columns
def test_a_set_and_itself_are_at_zero(count):
    x = normal(count, 64, 0, scale=np.geomspace(1e-3, 10, 64))
    assert max(frechet_distance(x, x), frechet_distance(x, x[::-1])) < 1e-10
    assert np.abs(frechet_leverages(x, x)).max() < 1e-8


def test_gaussians_with_given_moments_give_the_closed_form():
    sd_a, sd_b, shift = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.5]), np.array([1.0, 0.0, -2.0])
    a, b = with_moments(50, np.zeros(3), np.diag(sd_a**2), 0), with_moments(70, shift, np.diag(sd_b**2), 1)
    assert frechet_distance(a, b) == pytest.approx((shift**2).sum() + ((sd_a - sd_b) ** 2).sum(), rel=1e-9)
    # Covariances that do not commute: tr of the root of [[4, 2], [1, 2]], from its trace and determinant.
    a = with_moments(50, np.zeros(2), np.array([[2.0, 0.0], [0.0, 1.0]]), 0)
    b = with_moments(50, np.zeros(2), np.array([[2.0, 1.0], [1.0, 2.0]]), 1)
    assert frechet_distance(a, b) == pytest.approx(3 + 4 - 2 * math.sqrt(6 + 2 * math.sqrt(6)), rel=1e-9)


def test_few_rows_equal_the_full_covariances():
    """Constant columns make N < D without changing the value; so does one side with many rows."""
    a, b = normal(60, 12, 0), normal(50, 12, 1, 1.5)
    wide = [np.concatenate([x, np.full((len(x), 88), 3.0)], axis=1) for x in (a, b)]
    assert frechet_distance(*wide) == pytest.approx(by_sqrtm(a, b), rel=1e-9)
    few, many = normal(20, 30, 2), normal(200, 30, 3)
    covariances = [np.cov(x, rowvar=False) for x in (few, many)]
    values, vectors = np.linalg.eigh(covariances[1])
    root = vectors * np.sqrt(values) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[0] @ root).clip(0)).sum()
    expected = np.square(few.mean(0) - many.mean(0)).sum() + np.trace(sum(covariances)) - 2 * cross
    assert frechet_distance(few, many) == pytest.approx(expected, rel=1e-6)


def test_takes_half_precision_tensors_without_losing_it():
    a, b = torch.randn(80, 16).half(), torch.randn(90, 16).half()
    expected = frechet_distance(a.double().numpy(), b.double().numpy())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_small_sets_are_biased_upwards_and_extrapolation_takes_most_of_it_away():
    pairs = [(normal(150, 24, 2 * i), normal(150, 24, 2 * i + 1)) for i in range(12)]
    plain = np.mean([frechet_distance(a, b) for a, b in pairs])
    extrapolated = [frechet_distance_extrapolated(a, b, seed=i) for i, (a, b) in enumerate(pairs)]
    error = np.std(extrapolated) / math.sqrt(len(pairs))
    assert plain > 1 and abs(np.mean(extrapolated)) < 0.15 * plain + 3 * error and error < 0.1 * plain
    a, b = normal(400, 8, 0), normal(400, 8, 1, shift=1.0)
    first, other = (frechet_distance_extrapolated(a, b, seed=seed) for seed in (1, 2))
    assert first == pytest.approx(8.0, rel=0.2) and first != other
    assert first == frechet_distance_extrapolated(a, b, seed=1)


@pytest.mark.parametrize("count", [400, 20])  # more and fewer rows than columns
def test_leverages_rank_images_as_leaving_each_out_does(count):
    a, b = normal(count, 30, 0), normal(count, 30, 1, np.linspace(0.8, 1.2, 30), 0.2)
    a[3] *= 3
    left_out = [frechet_distance(a, b) - frechet_distance(np.delete(a, i, 0), b) for i in range(20)]
    found = frechet_leverages(a, b)[0][:20]
    np.testing.assert_allclose(found, frechet_leverages(b, a)[1][:20], atol=1e-10)
    assert found.argmax() == np.argmax(left_out) == 3
    others = np.delete(np.array([found, left_out]), 3, 1)
    assert np.corrcoef(others)[0, 1] > 0.95
    if count == 400:
        assert others[0] == pytest.approx(others[1], abs=0.005)  # the outlier's own is not small: 0.10 for 0.04


def test_mmd_is_unbiased_and_bounded():
    """Its mean over draws from one distribution is 0 within three standard errors, and those are small."""
    values = [gaussian_mmd(normal(40, 10, 2 * i), normal(40, 10, 2 * i + 1)) for i in range(300)]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error < 0.1 * 2 / 40  # 2 / N is what leaving the diagonal in would add
    assert gaussian_mmd(normal(50, 3, 0), normal(50, 3, 1, shift=1e4)) < 2
    assert gaussian_mmd(np.ones((5, 3)), np.ones((5, 3))) == 0


def test_mmd_equals_the_sums_written_out():
    a, b = normal(5, 3, 0), normal(4, 3, 1, shift=1)
    scale = np.median([np.square(a[i] - a[j]).sum() for i in range(5) for j in range(i)])

    def mean_kernel(x, y):
        found = np.exp(-np.square(x[:, None] - y).sum(2) / scale)
        return found[~np.eye(len(x), dtype=bool)].mean() if x is y else found.mean()

    expected = mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
    assert gaussian_mmd(a, b) == pytest.approx(expected)
    assert gaussian_mmd(1000 * a + 7, 1000 * b + 7) == pytest.approx(expected)  # the scale does not matter


def test_values_of_other_implementations():
    """Reference values, made in an environment of their own; without a torchvision that fits, stub its modules.

    python -m venv ref && ref/bin/pip install torch-fidelity==0.4.0 prdc==0.2 scipy && ref/bin/python - <<END
    import numpy as np, torch
    from prdc import compute_prdc
    from scipy.spatial.distance import pdist
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    rng = np.random.RandomState(0)
    a, b = rng.standard_normal((150, 16)), 1.2 * rng.standard_normal((150, 16)) + 0.3
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    print(fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), False))
    rbf = {"kid_kernel": "rbf", "kid_kernel_rbf_sigma": (np.median(pdist(a, "sqeuclidean")) / 2) ** 0.5}
    print(kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=150, verbose=False, **rbf))
    print(compute_prdc(a, b, nearest_k=5))
    END
    """
    rng = np.random.RandomState(0)
    a, b = rng.standard_normal((150, 16)), 1.2 * rng.standard_normal((150, 16)) + 0.3
    assert frechet_distance(a, b) == pytest.approx(3.7648933579844623, rel=1e-9)
    assert gaussian_mmd(a, b) == pytest.approx(0.04426202876170837, rel=1e-9)
    found = precision_recall_density_coverage(a, b, k=5)
    expected = {"precision": 82 / 150, "recall": 147 / 150, "density": 0.28, "coverage": 94 / 150}
    assert found == pytest.approx(expected)


def cluster(centre, count, seed):
    return normal(count, 2, seed, scale=0.1) + np.array(centre)


def test_neighbours_by_hand():
    """Points on a line, k = 1. Real 0, 1, 3 have radii 1, 1, 2; fake 1.5, 2.5, 9 have radii 1, 1, 6.5."""
    real, fake = np.array([[0.0], [1.0], [3.0]]), np.array([[1.5], [2.5], [9.0]])
    found = precision_recall_density_coverage(real, fake, k=1)
    # 1.5 lies in the balls of 1 and 3, 2.5 in that of 3, 9 in none; 1 in the ball of 1.5, 3 in those of 2.5 and 9
    assert found == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "density": (2 + 1 + 0) / 3, "coverage": 2 / 3})
    real, fake = np.array([[0.0], [1.0], [3.0], [10.0]]), np.array([[2.0], [2.2], [12.5], [30.0]])
    found = precision_recall_density_coverage(real, fake, k=2)
    # radii 3, 2, 3, 9: 2 and 2.2 lie in all four balls, 12.5 in the last, 30 in none
    assert (found["density"], found["precision"], found["coverage"]) == pytest.approx(((4 + 4 + 1) / 8, 3 / 4, 1))


def test_a_fake_set_of_half_the_modes_is_precise_without_recall_and_one_far_away_is_nothing():
    real = np.concatenate([cluster((0, 0), 40, 0), cluster((10, 0), 40, 1)])
    fake = cluster((0, 0), 60, 2) * 0.5
    found = precision_recall_density_coverage(real, fake, k=5)
    assert found["precision"] == 1 and 0.3 < found["recall"] <= 0.5 and found["coverage"] <= 0.5
    turned = precision_recall_density_coverage(fake, real, k=5)
    assert turned["precision"] == found["recall"] and turned["recall"] == 1
    assert set(precision_recall_density_coverage(real, cluster((50, 50), 20, 1)).values()) == {0}


def test_copies_and_boundaries_count_as_inside():
    """A ball of radius 0 holds its copies."""
    x = np.repeat(normal(10, 300, 0, scale=100.0, shift=1e3), 3, axis=0)
    found = precision_recall_density_coverage(x, x, k=2)
    assert list(found.values()) == [1, 1, 1.5, 1]  # each lies in the three balls of its copies, over k = 2


def test_chunks_change_nothing(monkeypatch):
    real, fake = normal(50, 6, 0), normal(45, 6, 1, 1.2)
    whole = precision_recall_density_coverage(real, fake)
    monkeypatch.setattr(distribution_metrics, "CHUNK", 7)
    assert precision_recall_density_coverage(real, fake) == whole


def test_intervals_cover_as_often_as_they_say():
    """Interval of a mean difference: nominal 90 %, over 200 pairs of sets whose true value is 0."""
    hits = 0
    for i in range(200):
        pair = normal(40, 1, 2 * i), normal(40, 1, 2 * i + 1)
        low, high = bootstrap_interval(lambda a, b: float(a.mean() - b.mean()), *pair, 60, i, level=0.9)
        hits += low <= 0 <= high
    assert 0.82 < hits / 200 < 0.96


def test_the_interval_of_a_biased_metric_lies_around_the_estimate():
    a, b = normal(60, 40, 0), normal(60, 40, 1)
    low, high = bootstrap_interval(frechet_distance, a, b, 40)
    assert low < frechet_distance(a, b) < high
    # resamples have fewer different rows, so all of them are farther apart than the sets themselves
    rng = np.random.default_rng(0)
    assert frechet_distance(rng.choice(a, 60), rng.choice(b, 60)) > high


def test_intervals_resample_both_sets_and_follow_the_seed():
    a, b = normal(30, 2, 0), normal(30, 2, 1)
    for metric in (lambda x, y: float(x.mean()), lambda x, y: float(y.mean())):
        low, high = bootstrap_interval(metric, a, b, 20)
        assert low < high
        assert (low, high) == bootstrap_interval(metric, a, b, 20) != bootstrap_interval(metric, a, b, 20, seed=1)
    narrow = bootstrap_interval(metric, a, b, 20, level=0.5)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize(
    "measure",
    [
        lambda x: frechet_distance(x, normal(9, 3, 0)),
        lambda x: precision_recall_density_coverage(x[:5], x, k=5),
        lambda x: precision_recall_density_coverage(x, x, k=0),
        lambda x: gaussian_mmd(np.full((4, 2), np.nan), x),
        lambda x: bootstrap_interval(frechet_distance, x, x, 1),
        lambda x: bootstrap_interval(frechet_distance, x, x, level=95),
    ],
)
def test_what_cannot_be_measured_is_refused(measure):
    with pytest.raises(ValueError):
        measure(normal(9, 2, 0))
