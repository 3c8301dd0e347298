import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from common.data.alignment import evened_out
from common.errors import DatasetError, SettingsError
from common.evaluation import nearest_patients
from common.evaluation.copy_detection import CopyReference
from common.evaluation.held_out_ratios import HeldOutRatios
from common.evaluation.nearest_patients import SPACES, CopyFeatures

SIZE = 16


def draw(count, seed, size=SIZE):
    """Independent images: embeddings of 8 dimensions, smooth pictures."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, size // 2, size // 2, generator=generator)
    pictures = F.interpolate(coarse, size=(size, size), mode="bicubic")
    return CopyFeatures(torch.randn(count, 8, generator=generator), pictures)


def join(*parts):
    return CopyFeatures(torch.cat([p.embeddings for p in parts]), torch.cat([p.pictures for p in parts]))


def noisy(features, seed, sd=0.05):
    generator = torch.Generator().manual_seed(seed)
    embeddings = features.embeddings + sd * torch.randn(features.embeddings.shape, generator=generator)
    return CopyFeatures(embeddings, features.pictures + sd * torch.randn(features.pictures.shape, generator=generator))


def fitted(train=None, held_out=None, patients=None, **options):
    train, held_out = train or draw(300, 0), held_out or draw(399, 1)
    return CopyReference(**{"max_shift": 1, **options}).fit(train, held_out, patients)


# ---- finding copies ------------------------------------------------------------------------------------------------


def test_noisy_copies_are_found_with_their_original_and_nothing_else_is():
    train, originals = draw(300, 0), [7, 123, 299]
    check = fitted(train).check(join(draw(100, 2), noisy(train[originals], 3)))
    assert check.is_copy.tolist() == [False] * 100 + [True] * 3
    assert check.is_flagged[100:].all() and check.is_flagged[:100].sum() <= 4
    for space in SPACES:
        assert check.spaces[space].nearest[100:].tolist() == originals
        assert (check.spaces[space].tail_p_value[100:] < 1e-5).all()
        assert (check.spaces[space].p_value[100:] == 1 / 400).all()


@pytest.mark.parametrize("space", SPACES)
def test_a_copy_in_one_space_is_enough(space):
    train, other = draw(300, 0), draw(1, 5)
    near = noisy(train[[42]], 3)
    parts = (near.embeddings, other.pictures) if space == "embedding" else (other.embeddings, near.pictures)
    check = fitted(train).check(CopyFeatures(*parts))
    assert check.is_copy.tolist() == [True] and check.spaces[space].nearest.tolist() == [42]
    (rest,) = set(SPACES) - {space}
    assert not check.spaces[rest].is_flagged.any()


def test_distances_are_cosine_and_correlation():
    train, samples = draw(50, 0), draw(6, 2)
    check = fitted(train, draw(30, 1), max_shift=0, num_neighbours=4).check(samples)
    vectors = {
        "embedding": [F.normalize(x.embeddings.double(), dim=1) for x in (train, samples)],
        "pixels": [np.corrcoef(evened_out(join(train, samples).pictures).flatten(1).numpy())],
    }
    cosine = vectors["embedding"][1] @ vectors["embedding"][0].T
    for space, similarity in (("embedding", cosine.numpy()), ("pixels", vectors["pixels"][0][50:, :50])):
        distance = np.sort(1 - similarity, axis=1)
        np.testing.assert_allclose(check.spaces[space].distance, distance[:, 0], atol=1e-5)
        np.testing.assert_allclose(check.spaces[space].ratio, distance[:, 0] / distance[:, :4].mean(1), atol=1e-5)


def test_many_pictures_of_one_patient_do_not_hide_a_copy():
    train = draw(300, 0)
    series = join(train, *(noisy(train[[5]], seed, 0.02) for seed in range(10)))
    sample = noisy(train[[5]], 3)
    by_patient = fitted(series, patients=[*range(300), *[5] * 10]).check(sample)
    by_image = fitted(series).check(sample)
    assert by_patient.is_copy.all()
    for space in SPACES:
        assert by_image.spaces[space].tail_p_value[0] > 100 * by_patient.spaces[space].tail_p_value[0]


def test_shifted_copies_are_found_within_max_shift():
    train = draw(300, 0, 24)
    shifted = CopyFeatures(draw(20, 4).embeddings, train.pictures[:20].roll((2, -1), (2, 3)))

    def found(max_shift):
        check = fitted(train, draw(399, 1, 24), max_shift=max_shift).check(shifted)
        pixels = check.spaces["pixels"]
        return float((pixels.is_flagged & (pixels.nearest == np.arange(20))).mean())

    assert found(2) == 1
    assert found(0) < 0.2


def test_chunks_change_nothing(monkeypatch):
    train, samples = draw(300, 0), join(draw(40, 2), noisy(draw(300, 0)[[1, 2]], 3))
    own, found = [[i] for i in range(42)], []
    for size in (10_000, 7):
        monkeypatch.setattr(nearest_patients, "CHUNK", size)
        found.append(fitted(train).check(samples, own))
    for space in SPACES:
        for name in ("nearest", "distance", "ratio", "p_value", "source_distance"):
            values = (getattr(check.spaces[space], name) for check in found)
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)


# ---- calibration ---------------------------------------------------------------------------------------------------


def test_images_of_new_patients_are_flagged_at_the_stated_rate():
    flagged = {space: [] for space in SPACES}
    either, levels = [], []
    for seed in range(20):
        reference = fitted(draw(100, 3 * seed + 100), draw(199, 3 * seed + 101), false_flag_rate=0.1)
        check = reference.check(draw(200, 3 * seed + 102))
        either.append(check.is_flagged.mean())
        levels.append(check.verdict["level"])
        for space in SPACES:
            flagged[space].append(check.spaces[space].is_flagged.mean())
    for space in SPACES:  # 10 of 200: 0.05, known here to 0.005
        assert 0.035 < np.mean(flagged[space]) < 0.065
    assert np.mean(either) < 0.12
    assert levels.count("no_sign") >= 17


def test_verdict_follows_what_is_in_the_set():
    train = draw(300, 0)
    reference = fitted(train, draw(999, 1))
    clean = reference.check(draw(300, 2)).verdict
    assert clean["level"] == "no_sign" and clean["p_value"] > 0.05
    assert clean["expected_flagged"] == pytest.approx(300 * 2 * 5 / 1000)  # the 5th of 999 in each of two spaces

    one = reference.check(join(draw(300, 2), noisy(train[[5]], 3))).verdict
    assert one["level"] == "copies" and one["num_copies"] == 1 and "1 of 301" in one["text"]
    # Too far away for a single one to stand out, but too many of them.
    resembling = draw(300, 2)
    resembling.pictures[:90] = train.pictures[:90] + 2.2 * draw(300, 7).pictures[:90]
    many = fitted(train, draw(999, 1), false_flag_rate=0.1).check(resembling).verdict
    assert many["level"] == "more_near_copies" and many["num_copies"] == 0
    assert many["num_flagged"] > 1.3 * many["expected_flagged"] and many["count_p_value"] < 0.01 < many["copy_p_value"]


def test_samples_nearer_as_a_whole_show_in_the_comparison():
    train = draw(300, 0)
    closer = draw(200, 2).embeddings + 2.0 * train.embeddings[:200]
    check = fitted(train).check(CopyFeatures(closer, draw(200, 2).pictures))
    probability, p = check.comparison["embedding"]["distance"]
    assert probability > 0.6 and p < 1e-4
    probability, p = check.comparison["pixels"]["distance"]
    assert 0.4 < probability < 0.6 and p > 0.01


def test_too_few_held_out_images_leave_it_undecided_but_show_plain_copies():
    train = draw(300, 0)
    reference = fitted(train, draw(60, 1))
    check = reference.check(draw(20, 2))
    assert check.verdict["level"] == "undecided"
    assert reference.held_out["pixels"].threshold is None
    assert reference.check(join(draw(20, 2), train[[3]])).verdict["level"] == "copies"
    assert fitted(train, draw(1, 1)).check(train[[3]]).verdict["level"] == "undecided"


def test_held_out_copies_of_training_images_are_named_and_left_out():
    train, held_out = draw(300, 0), draw(399, 1)
    leaky = join(held_out[:200], noisy(train[[11, 12, 13]], 5), held_out[200:])
    reference = fitted(train, leaky)
    assert reference.leaks == [(200, 11), (201, 12), (202, 13)]
    clean = fitted(train, held_out)
    for space in SPACES:
        np.testing.assert_allclose(reference.held_out[space].sorted, clean.held_out[space].sorted, rtol=1e-4)
        np.testing.assert_allclose(reference.held_out_distance[space], clean.held_out_distance[space], rtol=1e-3)


# ---- sources -------------------------------------------------------------------------------------------------------


def test_the_own_source_is_reported_but_not_flagged():
    train = draw(300, 0)
    variations = noisy(train[:20], 3)
    check = fitted(train).check(join(variations, draw(100, 2)), [[i] for i in range(20)] + [[]] * 100)
    assert not check.is_copy.any() and check.verdict["level"] == "no_sign"
    assert check.copies_source.tolist() == [True] * 20 + [False] * 100
    for space in SPACES:
        result = check.spaces[space]
        assert result.nearest_is_own_source.tolist() == [True] * 20 + [False] * 100
        assert not (result.nearest[:20] == np.arange(20)).any()
        assert (result.source_distance[:20] < 0.05).all() and np.isnan(result.source_distance[20:]).all()


def test_other_images_of_a_source_patient_are_left_out_too():
    train = join(draw(300, 0), noisy(draw(300, 0)[[5]], 9))  # image 300 shows what image 5 shows
    sample = noisy(train[[5]], 3)
    same = fitted(train, patients=[*range(300), 5]).check(sample, [[5]])
    assert not same.is_flagged.any()
    other = fitted(train, patients=range(301)).check(sample, [[5]])
    assert other.is_copy.all() and other.spaces["pixels"].nearest.tolist() == [300]


@pytest.mark.parametrize(("row", "copies_source"), [(8, False), (300 + 17, True)])
def test_copying_the_source_is_told_apart_from_copying_someone_else(row, copies_source):
    """Made from training image 7 and held-out image 17, and like training image 8 or one of its sources."""
    train, held_out = draw(300, 0), draw(399, 1)
    check = fitted(train, held_out).check(noisy(join(train, held_out)[[row]], 3), [[7, 300 + 17]])
    assert check.copies_source.tolist() == [copies_source] and check.is_copy.tolist() == [not copies_source]
    assert check.is_flagged.tolist() == check.is_copy.tolist()
    assert check.spaces["pixels"].nearest_is_own_source.tolist() == [copies_source]


def test_brightness_and_contrast_do_not_matter():
    picture = draw(3, 0).pictures
    torch.testing.assert_close(evened_out(0.3 * picture + 5), evened_out(picture), atol=1e-3, rtol=0)
    assert not evened_out(torch.full((1, 1, SIZE, SIZE), 0.5)).any()  # and a blank one stays finite


# ---- input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compare",
    [
        lambda train: CopyFeatures(torch.zeros(3, 4), torch.zeros(2, 1, 8, 8)),
        lambda train: CopyFeatures(torch.full((1, 4), torch.nan), torch.zeros(1, 1, 8, 8)),
        lambda train: CopyReference().check(train),  # no fit
        lambda train: CopyReference().fit(train[:2], draw(5, 1)),
        lambda train: CopyReference(max_shift=8).fit(train, draw(5, 1)),
        lambda train: fitted(train).check(draw(3, 2, 24)),
        lambda train: fitted(train).check(train[:0]),
        lambda train: fitted(train).check(train[:3], [[0]]),
        lambda train: fitted(train, patients=["a"] * 10).check(train[:1], [[0]]),  # no other patient to compare with
    ],
    ids=["shapes", "NaN", "unfitted", "two", "small pictures", "another size", "none", "few sources", "one patient"],
)
def test_what_cannot_be_compared_is_refused(compare):
    with pytest.raises(DatasetError):
        compare(draw(10, 0))


@pytest.mark.parametrize(
    "options", [{"false_flag_rate": 1}, {"significance": 0}, {"num_neighbours": 1}, {"max_shift": -1}]
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(SettingsError):
        CopyReference(**options)


# ---- ratios of held-out images ---------------------------------------------------------------------------------------


def test_count_p_value_takes_the_threshold_for_the_estimate_it_is():
    rng = np.random.default_rng(0)
    ours, binomial = [], []
    for _ in range(400):
        held_out = HeldOutRatios(rng.uniform(size=199), 0.01)
        flagged = held_out.flags(rng.uniform(size=1000))
        ours.append(held_out.count_p_value(flagged, range(1000)))
        binomial.append(stats.binomtest(int(flagged.sum()), 1000, 0.01, alternative="greater").pvalue)
    assert 0.01 < np.mean(np.array(ours) <= 0.05) < 0.08
    assert np.mean(np.array(binomial) <= 0.05) > 0.15  # what it would be with the rate taken for known


def test_tail_p_values_hold_far_below_one_over_n():
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(400):
        held_out = HeldOutRatios(np.exp(-0.2 * rng.exponential(size=300)), 0.005)
        p_values.append(held_out.tail_p_value(np.exp(-0.2 * rng.exponential(size=5000))))
    for level in (1e-2, 1e-3, 1e-4):  # 2 million draws, 200 expected at the last
        assert 0.7 < np.mean(np.concatenate(p_values) <= level) / level < 1.3


def test_tail_withstands_copies_among_the_held_out():
    ratios = np.exp(-0.2 * np.random.default_rng(0).exponential(size=300))
    spoilt = np.sort(ratios)
    spoilt[:4] = 1e-4
    clean, robust = (HeldOutRatios(values, 0.005).tail_p_value(np.array([1e-3]))[0] for values in (ratios, spoilt))
    assert robust < 10 * clean


def test_p_value_is_the_conformal_rank():
    held_out = HeldOutRatios(np.array([0.4, 0.2, 0.8, 0.6]), 0.4)  # rank 2 of 4
    np.testing.assert_allclose(held_out.p_value(np.array([0.1, 0.2, 0.5, 0.9])), np.array([1, 2, 3, 5]) / 5)
    assert held_out.flags(np.array([0.1, 0.2, 0.39, 0.4, 0.5])).tolist() == [True, True, True, False, False]
    assert held_out.threshold == 0.4


def test_samples_of_one_source_count_once():
    held_out = HeldOutRatios(np.linspace(0.1, 1, 399), 0.005)
    flagged = np.array([True] * 20 + [False] * 180)
    alone = held_out.count_p_value(flagged, range(200))
    together = held_out.count_p_value(flagged, [i // 20 for i in range(200)])
    law = stats.betabinom(10, 2, 398)
    assert alone < 1e-6
    assert together == pytest.approx(law.sf(0))
