"""Trials are trained on labels of their sources, pseudo-labels of a probe, no patient of the subset unlabelled."""

from collections import Counter

import numpy as np
import pytest
from tiny_benefit import labelled_folder, tiny_generator

from common.experiments.benefit_examples import choose_confident
from common.experiments.benefit_regimes import Trial
from common.experiments.benefit_study import Study, labelled_split
from common.experiments.benefit_subsets import SubsetError
from common.experiments.densenet import TrainingSettings


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_dino):
    root = tmp_path_factory.mktemp("examples")
    train, test, classes = labelled_split(str(labelled_folder(root / "data", 6, 1)), None)
    generator = tiny_generator(root / "bundle", tiny_dino)
    return Study(train, test, classes, generator, root / "work", TrainingSettings(32, 2, 4), num_views=1, amp=False)


def trial(strategy, ratio=2, size=6, seed=0):
    return Trial("probe", "mixed", strategy, ratio, size, seed)


@pytest.mark.parametrize("strategy", ["variation", "interpolation", "prior", "unlabelled"])
def test_every_strategy_gives_the_ratio_in_balanced_classes(study, strategy):
    ratio = 1 if strategy == "unlabelled" else 2
    found = study.examples.synthetic(trial(strategy, ratio))
    assert Counter(each.label for each in found) == dict.fromkeys(range(3), 2 * ratio)
    assert len({each.path for each in found}) == 6 * ratio
    again = study.examples.synthetic(trial(strategy, ratio))
    assert found == again


def test_synthetic_images_carry_the_label_and_the_sources_of_the_subset(study):
    label = {each.path: each.label for each in study.examples.real(trial("none", 0))}
    for strategy, number in (("variation", 1), ("interpolation", 2)):
        for each in study.examples.synthetic(trial(strategy)):
            assert len(each.sources) == number and {label[source] for source in each.sources} == {each.label}
            assert str(study.pool.folder) in each.path


def test_pseudo_labelled_real_images_are_of_other_patients(study):
    real = {each.path for each in study.examples.real(trial("unlabelled", 1))}
    assert real.isdisjoint(each.path for each in study.examples.synthetic(trial("unlabelled", 1)))
    with pytest.raises(SubsetError, match="found 12 real images"):
        study.examples.synthetic(trial("unlabelled", 3))


def test_subsets_of_a_seed_are_nested_and_too_large_ones_refused(study):
    small, large = (study.examples.real(trial("none", 0, size)) for size in (6, 12))
    assert large[:6] == small
    with pytest.raises(SubsetError, match="expected 1 to 18"):
        study.examples.real(trial("none", 0, 19))


def test_the_most_confident_near_candidates_are_taken_once_each():
    known = np.array([[1.0, 0.0]])
    candidates = np.array([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [0, 2], [0, 3]])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3], [0.0, 1.0], [0, 1], [0, 1], [0, 1]])
    # Candidates 4 to 7 are surest of class 1 but far away.
    assert choose_confident(candidates, known, probabilities, [1, 1]) == [(0, 0), (2, 1)]
    assert choose_confident(candidates, known, probabilities, [2, 2]) == [(0, 0), (1, 0), (2, 1), (3, 1)]
    with pytest.raises(SubsetError, match="at least 9"):
        choose_confident(candidates, known, probabilities, [5, 4])
