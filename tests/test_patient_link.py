"""A head that recognises patients: on held-out pairs, and on generators that do and do not show known patients."""

import numpy as np
import pytest
import torch

from common.evaluation.nearest_patients import CopyFeatures
from common.evaluation.patient_link import (
    LinkCheck,
    PatientHead,
    PatientImages,
    _auc_and_power,
    draw_links,
    link_markdown,
)

IDENTITY, NUISANCE = 24, 12  # dimensions of a token that say who it is, and how the picture was taken


def pictures_of(patients, seed):
    """Tokens of these patients, each in a new picture."""
    who = np.stack([np.random.default_rng(patient).standard_normal(IDENTITY) for patient in patients])
    rng = np.random.default_rng(seed)
    taken = 2 * rng.standard_normal((len(patients), NUISANCE))
    tokens = np.concatenate([who + 0.1 * rng.standard_normal(who.shape), taken], axis=1)
    return CopyFeatures(torch.from_numpy(tokens).float(), torch.zeros(len(tokens), 1, 3, 3))


def images(patients, seed):
    return PatientImages(pictures_of(patients, seed), patients, ["odd" if p % 2 else "even" for p in patients])


TRAIN = images([number // 2 for number in range(200)], 1)  # 100 patients
HELD_OUT = images([1000 + number // 2 for number in range(60)] + list(range(2000, 2120)), 2)


@pytest.fixture(scope="module")
def check():
    return LinkCheck(TRAIN, HELD_OUT, num_neighbours=5, false_flag_rate=0.05)


def look_at(check, samples):
    return check.run(samples, [()] * len(samples), range(len(samples)))


def test_the_head_tells_held_out_patients_apart_where_the_tokens_do_not(check):
    raw = HELD_OUT.features.embeddings
    mapped = check.head(HELD_OUT.features).embeddings
    for tokens, is_good in ((raw, False), (mapped, True)):
        similarity = torch.nn.functional.cosine_similarity(tokens[:60:2], tokens[1:60:2])
        others = torch.nn.functional.cosine_similarity(tokens[:60:2], tokens[:60:2].roll(1, 0))
        assert (similarity.median() > others.max()) == is_good
    found = look_at(check, pictures_of([3000], 3))["pairs"]
    assert found.keys() == {"all", "odd", "even"}
    assert (found["all"]["num_same"], found["all"]["num_patients"]) == (30, 30)
    assert found["all"]["num_different"] == 2 * (90 * 89 // 2) - 30  # within a source only
    assert found["all"]["auc"] > 0.99 and found["all"]["power"] > 0.9
    for each in found.values():
        for name in ("auc", "power"):
            assert each[f"{name}_ci"][0] <= each[name] <= each[f"{name}_ci"][1]


def test_a_generator_that_shows_training_patients_in_other_pictures_is_found(check):
    found = look_at(check, pictures_of(range(0, 100, 4), 7))["samples"]
    assert found["flagged"] > 20 > 5 * found["expected_flagged"]
    assert found["count_p_value"] < 1e-6 and found["p_value"] < 1e-6 and found["probability_sample_is_nearer"] > 0.95


def test_new_patients_are_not_linked(check):
    found = look_at(check, pictures_of(range(5000, 5060), 8))["samples"]
    assert found["flagged"] <= 9 and found["count_p_value"] > 0.01 and found["p_value"] > 0.01


def test_patients_that_are_planted_among_the_held_out_ones_measure_the_power(check):
    found = look_at(check, pictures_of([3000], 3))["planted"]
    assert found["num_patients"] == 30
    assert found["linked"] >= 25 and found["nearest_is_right"] >= found["linked"] <= found["flagged"]


def test_the_patient_of_an_own_source_does_not_count(check):
    samples = pictures_of(range(0, 100, 4), 7)
    own = [(2 * patient,) for patient in range(0, 100, 4)]  # one of both images
    found = check.run(samples, own, range(len(samples)))["samples"]
    assert found["flagged"] <= 5


def test_a_head_without_pairs_is_not_made():
    alone = images(list(range(40)), 0)
    assert LinkCheck.can(TRAIN, HELD_OUT)
    assert not LinkCheck.can(alone, HELD_OUT) and not LinkCheck.can(TRAIN, images(list(range(2000, 2100)), 0))
    head = PatientHead(TRAIN)
    assert (head.num_patients, head.num_images) == (100, 200)


def test_auc_and_power_by_hand():
    is_same = np.array([False, True, False, True, True])  # in ascending order
    auc, power = _auc_and_power(is_same, np.ones(5))
    assert auc == pytest.approx((1 + 2 + 2) / 6) and power == pytest.approx(2 / 3)
    twice = _auc_and_power(is_same, np.array([1, 1, 2, 1, 1]))
    assert twice == _auc_and_power(np.array([False, True, False, False, True, True]), np.ones(6))


def test_table_and_plot_show_nobody(check, tmp_path):
    found = look_at(check, pictures_of(range(5000, 5060), 8))
    draw_links(tmp_path / "links.png", check)
    assert (tmp_path / "links.png").stat().st_size > 1000
    text = link_markdown(found)
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 2 + 3
    assert "1000" not in text
