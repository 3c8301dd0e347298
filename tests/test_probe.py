"""The probe separates what can be separated, and its parts do what they say."""

import numpy as np
import pytest

from common.experiments.probe import L2_STRENGTHS, Samples, choose_strength, fit_path, standardisation


def clouds(count, distance, seed=0, dim=6):
    """Three Gaussian classes of different scales per feature."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = distance * np.eye(dim)[:3]
    features = (centres[labels] + generator.normal(size=(count, dim))) * np.geomspace(0.01, 100, dim) + 5
    return features, labels


def samples(count=60, distance=8.0, seed=0, weights=None):
    features, labels = clouds(count, distance, seed)
    return Samples(features, labels, np.ones(count) if weights is None else weights)


def test_separable_classes_are_separated_on_new_data_at_every_strength():
    test, labels = clouds(300, 8.0, seed=1)
    for probe in fit_path(samples(), 3):
        probabilities = probe.probabilities(test)
        assert (probabilities.argmax(1) == labels).mean() > 0.97
        assert probabilities.sum(1) == pytest.approx(np.ones(300))


def test_a_weight_of_two_is_two_copies_and_scale_does_not_matter():
    features, labels = clouds(30, 2.0)
    weights = 1.0 + np.arange(30) % 2
    doubled = Samples(features.repeat(weights.astype(int), 0), labels.repeat(weights.astype(int)), np.ones(45))
    one, two = (fit_path(each, 3, [0.1])[0].coefficients for each in (Samples(features, labels, 7 * weights), doubled))
    np.testing.assert_allclose(one, two, atol=2e-3)
    np.testing.assert_allclose(standardisation(doubled)[0], standardisation(Samples(features, labels, weights))[0])


def test_strong_regularisation_keeps_the_start_and_weak_leaves_it():
    start = fit_path(samples(seed=3), 3, [0.1])[0]
    other = samples(distance=2.0, seed=4)
    strong, weak = fit_path(other, 3, [1e4, 1e-2], start)
    away = [np.abs((probe.coefficients - start.coefficients)[:-1]).max() for probe in (strong, weak)]
    assert away[0] < 1e-3 < 0.1 < away[1]
    assert strong.mean is start.mean


def test_noise_asks_for_more_regularisation_than_signal():
    generator = np.random.default_rng(0)

    def chosen(distance):
        features, labels = clouds(45, distance)
        extra = np.concatenate([features, generator.normal(size=(45, 60))], axis=1)
        data = Samples(extra, labels, np.ones(45))
        turns = np.arange(45) // 3 % 3
        place, loss = choose_strength(
            lambda fold: fit_path(data.keep(turns != fold), 3),
            [(extra[turns == fold], labels[turns == fold]) for fold in range(3)],
        )
        assert 0 < loss < 2 * np.log(3)
        return L2_STRENGTHS[place]

    assert chosen(0.0) == max(L2_STRENGTHS) > chosen(6.0)
    with pytest.raises(ValueError, match="no fold"):
        choose_strength(lambda fold: [], [])
