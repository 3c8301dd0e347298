"""The probe separates what can be separated, its folds hide what they hold out; the network learns and repeats."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_benefit import tiny_study

from common.errors import SettingsError
from common.experiments.benefit_trials import Example, Trial
from common.experiments.densenet import DenseNetClassifier, TrainingSettings, batch_order, load_images, mix_up
from common.experiments.probe_classifier import (
    L2_STRENGTHS,
    ProbeClassifier,
    ProbeFeatures,
    choose_confident,
    choose_strength,
    fit_path,
    standardisation,
)


def clouds(count, distance, seed=0, dim=6):
    """Three Gaussian classes of different scales per feature."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = distance * np.eye(dim)[:3]
    features = (centres[labels] + generator.normal(size=(count, dim))) * np.geomspace(0.01, 100, dim) + 5
    return features, labels


def samples(count=60, distance=8.0, seed=0):
    return *clouds(count, distance, seed), np.ones(count)


def test_separable_classes_are_separated_on_new_data_at_every_strength():
    test, labels = clouds(300, 8.0, seed=1)
    for probe in fit_path(*samples(), 3):
        probabilities = probe.probabilities(test)
        assert (probabilities.argmax(1) == labels).mean() > 0.97
        assert probabilities.sum(1) == pytest.approx(np.ones(300))


def test_a_weight_of_two_is_two_copies_and_scale_does_not_matter():
    features, labels = clouds(30, 2.0)
    weights = 1.0 + np.arange(30) % 2
    doubled = features.repeat(weights.astype(int), 0), labels.repeat(weights.astype(int)), np.ones(45)
    one, two = (fit_path(*each, 3, [0.1])[0].coefficients for each in ((features, labels, 7 * weights), doubled))
    np.testing.assert_allclose(one, two, atol=2e-3)
    np.testing.assert_allclose(standardisation(*doubled[::2])[0], standardisation(features, weights)[0])


def test_strong_regularisation_keeps_the_start_and_weak_leaves_it():
    start = fit_path(*samples(seed=3), 3, [0.1])[0]
    other = samples(distance=2.0, seed=4)
    strong, weak = fit_path(*other, 3, [1e4, 1e-2], start)
    away = [np.abs((probe.coefficients - start.coefficients)[:-1]).max() for probe in (strong, weak)]
    assert away[0] < 1e-3 < 0.1 < away[1]
    assert strong.mean is start.mean


def test_noise_asks_for_more_regularisation_than_signal():
    generator = np.random.default_rng(0)

    def chosen(distance):
        features, labels = clouds(45, distance)
        extra = np.concatenate([features, generator.normal(size=(45, 60))], axis=1)
        turns = np.arange(45) // 3 % 3
        place, loss = choose_strength(
            lambda fold: fit_path(extra[turns != fold], labels[turns != fold], np.ones(30), 3),
            [(extra[turns == fold], labels[turns == fold]) for fold in range(3)],
        )
        assert 0 < loss < 2 * np.log(3)
        return L2_STRENGTHS[place]

    assert chosen(0.0) == max(L2_STRENGTHS) > chosen(6.0)


# ---- the classifier on real features ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting(tmp_path_factory, tiny_dino):
    """Features of a labelled folder, its images in draw order, and its test images."""
    study = tiny_study(tmp_path_factory.mktemp("probe"), tiny_dino, 4, 2, num_views=0)
    return study.features.encoder, study.real(Trial("probe", "real", "none", 0, 12, 0)), study.test_paths


def test_features_are_cls_tokens_kept_by_content(setting):
    encoder, real, _ = setting
    paths = [each.path for each in real]
    features = ProbeFeatures(encoder, 16, num_views=2)
    assert np.array_equal(features.of(paths), encoder.of_files(paths).features[:, :16])
    views = features.of_views(paths)
    assert views.shape == (12, 2, 16) and not np.allclose(views[:, 0], views[:, 1])
    again = ProbeFeatures(encoder, 16, num_views=2)  # from disk
    assert np.array_equal(again.of_views(paths[::-1]), views[::-1])


def test_folds_hide_a_held_out_image_its_views_and_what_was_made_of_it(setting, monkeypatch):
    encoder, real, test = setting
    synthetic = [Example(real[rank].path, real[rank].label, (real[rank].path, real[0].path)) for rank in range(12)]
    classifier = ProbeClassifier(ProbeFeatures(encoder, 16, 2), 3, test)
    seen = []
    samples = classifier._samples

    def noted(real, synthetic, regime):
        seen.append((len(real), len(synthetic)))
        return samples(real, synthetic, regime)

    monkeypatch.setattr(classifier, "_samples", noted)
    classifier.fit(real, synthetic, "mixed")
    # Four folds of three images. The first holds image 0, of which all are made; then everything is shown.
    assert seen == [(9, 0), (9, 9), (9, 9), (9, 9), (12, 12)]


@pytest.mark.parametrize(
    ("regime", "num_samples"),
    [("real_unaugmented", 12), ("real", 24), ("mixed", 24 + 9), ("synthetic", 9), ("pretrained", None)],
)
def test_every_regime_gives_probabilities_and_repeats(setting, regime, num_samples):
    encoder, real, test = setting
    classifier = ProbeClassifier(ProbeFeatures(encoder, 16, 1), 3, test)
    probabilities, about = classifier(real, real[3:], regime, seed=0)
    assert probabilities.shape == (6, 3) and probabilities.sum(1) == pytest.approx(np.ones(6))
    assert ("l2_synthetic" in about) == (regime == "pretrained")
    assert np.array_equal(probabilities, classifier(real, real[3:], regime, seed=5)[0])
    if num_samples:
        _, labels, weights = classifier._samples(real, real[3:], regime)
        assert len(labels) == num_samples  # an image and its view together weigh as much as one
        assert weights.sum() == 12 * (regime != "synthetic") + 9 * (regime in ("mixed", "synthetic"))


def test_too_few_images_for_folds_are_refused(setting):
    encoder, real, test = setting
    with pytest.raises(SettingsError):
        ProbeClassifier(ProbeFeatures(encoder, 16, 0), 3, test).fit(real[:5], [], "real")


def test_the_most_confident_near_candidates_are_taken_once_each():
    known = np.array([[1.0, 0.0]])
    candidates = np.array([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [0, 2], [0, 3]])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3], [0.0, 1.0], [0, 1], [0, 1], [0, 1]])
    # Candidates 4 to 7 are surest of class 1 but far away.
    assert choose_confident(candidates, known, probabilities, [1, 1]) == [(0, 0), (2, 1)]
    assert choose_confident(candidates, known, probabilities, [2, 2]) == [(0, 0), (1, 0), (2, 1), (3, 1)]


# ---- the network -----------------------------------------------------------------------------------------------------

SMALL = TrainingSettings(image_size=32, num_steps=4, batch_size=6, learning_rate=2e-3, amp=False)


def test_mixup_blends_labels_as_it_blends_images():
    image = torch.arange(6.0).view(6, 1, 1, 1).expand(-1, 1, 4, 4) / 6
    target = torch.eye(6)
    mixed, soft = mix_up(image, target, 0.5, seed=3)
    assert soft.sum(1) == pytest.approx(torch.ones(6)) and (soft > 0).sum(1).max() == 2
    # an image's value names it, so the labels say what the picture must be
    assert torch.allclose(mixed[:, 0, 0, 0], soft @ (torch.arange(6.0) / 6), atol=1e-6)
    again, _ = mix_up(image, target, 0.5, seed=3)
    assert torch.equal(mixed, again) and not torch.equal(mixed, mix_up(image, target, 0.5, seed=4)[0])
    assert mix_up(image, target, 0.0, seed=3)[0] is image


def test_every_image_is_seen_as_often_as_any_other():
    order = batch_order(7, 8, 7, seed=1)
    assert order.shape == (8, 7) and (np.bincount(order.ravel()) == 8).all()
    assert np.array_equal(order, batch_order(7, 8, 7, seed=1)) and not np.array_equal(order[0], order[1])
    assert batch_order(100, 2, 4, seed=0).shape == (2, 4)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Two classes: a bright square left or above."""
    folder, generator = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    examples = []
    for number in range(24):
        pixels = generator.integers(0, 60, (32, 32)).astype(np.uint8)
        pixels[(slice(8, 24), slice(0, 10)) if number % 2 else (slice(0, 10), slice(8, 24))] = 220
        Image.fromarray(pixels).save(folder / f"{number}.png")
        examples.append(Example(str(folder / f"{number}.png"), number % 2, (str(folder / f"{number}.png"),)))
    return examples


def test_the_same_seed_gives_the_same_network_whatever_came_before(squares):
    train, test = squares[:16], [each.path for each in squares[16:]]
    classifier = DenseNetClassifier(2, test, SMALL)
    first, about = classifier(train[:8], train[8:], "pretrained", seed=0)
    torch.randn(3)
    np.random.rand(3)
    again, _ = classifier(train[:8], train[8:], "pretrained", seed=0)
    assert np.array_equal(first, again) and len(about["training_loss"]) == 2
    other, _ = classifier(train[:8], train[8:], "pretrained", seed=1)
    assert not np.array_equal(first, other)


def test_it_learns(squares):
    settings = TrainingSettings(image_size=32, num_steps=14, batch_size=8, learning_rate=2e-3, amp=False)
    classifier = DenseNetClassifier(2, [each.path for each in squares[16:]], settings)
    probabilities, _ = classifier(squares[:16], [], "real_unaugmented", seed=0)
    assert (probabilities.argmax(1) == [each.label for each in squares[16:]]).all()


def test_images_are_what_was_written(squares):
    images = load_images([squares[0].path], 32)
    assert images.dtype == torch.uint8
    assert np.array_equal(images[0, 0].numpy(), np.asarray(Image.open(squares[0].path)))
