"""The probe on real features: views, folds that hide what they hold out, and pre-training."""

import numpy as np
import pytest
from tiny_benefit import labelled_folder, tiny_generator

from common.experiments.benefit_features import ProbeFeatures
from common.experiments.benefit_pool import token_features
from common.experiments.benefit_regimes import Example
from common.experiments.benefit_study import labelled_split
from common.experiments.benefit_subsets import SubsetError, draw_order
from common.experiments.probe_classifier import ProbeClassifier


@pytest.fixture(scope="module")
def setting(tmp_path_factory, tiny_dino):
    """Features of a labelled folder, its images in draw order, and its test images."""
    root = tmp_path_factory.mktemp("probe")
    encoder = token_features(tiny_generator(root / "bundle", tiny_dino), root / "cache", progress=False)
    train, test, classes = labelled_split(str(labelled_folder(root / "data", 4, 2)), None)
    order = draw_order(train, classes, 0)
    real = [Example(item["image"], classes.index(item["label"]), (item["image"],)) for item in order]
    return encoder, real, [item["image"] for item in test]


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


def test_weights_make_an_image_and_its_views_one(setting):
    encoder, real, test = setting
    classifier = ProbeClassifier(ProbeFeatures(encoder, 16, 2), 3, test)
    mixed = classifier._samples(real, real[:6], "mixed")
    assert len(mixed.labels) == 12 * 3 + 6 and mixed.weights.sum() == pytest.approx(18)
    assert len(classifier._samples(real, [], "real_unaugmented").labels) == 12
    assert len(classifier._samples(real, real[:6], "synthetic").labels) == 6


@pytest.mark.parametrize("regime", ["real_unaugmented", "real", "mixed", "synthetic", "pretrained"])
def test_every_regime_gives_probabilities_and_repeats(setting, regime):
    encoder, real, test = setting
    classifier = ProbeClassifier(ProbeFeatures(encoder, 16, 1), 3, test)
    probabilities, about = classifier(real, real[3:], regime, seed=0)
    assert probabilities.shape == (6, 3) and probabilities.sum(1) == pytest.approx(np.ones(6))
    assert ("l2_synthetic" in about) == (regime == "pretrained")
    assert np.array_equal(probabilities, classifier(real, real[3:], regime, seed=5)[0])


def test_too_few_images_for_folds_are_refused(setting):
    encoder, real, test = setting
    with pytest.raises(SubsetError, match="two a class"):
        ProbeClassifier(ProbeFeatures(encoder, 16, 0), 3, test).fit(real[:5], [], "real")
