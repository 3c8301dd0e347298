"""The report on a pair of sets: its figures, its floor of two real halves, its table."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.errors import SettingsError
from common.evaluation.distribution_metrics import (
    bootstrap_interval,
    frechet_distance,
    frechet_distance_extrapolated,
    gaussian_mmd,
    precision_recall_density_coverage,
)
from common.evaluation.image_quality import ImageQuality, markdown, split_halves

QUALITY = ImageQuality(num_resamples=12, num_left_out=3, nearest_k=3, seed=4, progress=False)


def normal(count, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((count, 6)) + shift


def test_figures_are_those_of_the_metrics():
    real, fake = normal(50, 0), normal(40, 1, 0.5)
    found = QUALITY.compare(real, fake)
    assert found["fd"] == frechet_distance(real, fake)
    assert tuple(found["fd_ci"]) == bootstrap_interval(frechet_distance, real, fake, 12, 4, 0.95)
    assert found["fd_infinity"] == frechet_distance_extrapolated(real, fake, 4)
    assert found["mmd"] == gaussian_mmd(real, fake)
    assert tuple(found["mmd_ci"]) == bootstrap_interval(gaussian_mmd, real, fake, 12, 4, 0.95)
    shares = precision_recall_density_coverage(real, fake, 3)
    assert {name: found[name] for name in shares} == shares
    assert (found["num_real"], found["num_fake"]) == (50, 40)


def test_floor_compares_two_halves_of_the_real_images():
    real, fake = normal(60, 0), normal(40, 1, shift=5.0)
    found = QUALITY.compare(real, fake)
    floor, same_n = found["real_real_floor"], found["fake_at_floor_n"]
    first, second = split_halves([str(i) for i in range(60)], seed=4)
    assert floor["fd"] == frechet_distance(real[first], real[second])
    assert (floor["num_real"], floor["num_fake"]) == (same_n["num_real"], same_n["num_fake"]) == (30, 30)
    assert "share no image" in floor["note"]
    assert floor["fd"] < 10 < 100 < same_n["fd"]


def test_floor_keeps_patients_apart():
    patients = [f"p{i // 3}" for i in range(60)]
    real = np.repeat(normal(20, 0), 3, axis=0)  # the images of a patient are all alike
    found = QUALITY.compare(real, normal(40, 1), patients)["real_real_floor"]
    # were a patient's images dealt to both halves, most would lie at distance 0 of one in the other half
    apart, mixed = (
        precision_recall_density_coverage(*(real[half] for half in split_halves(who, 4)), k=3)["coverage"]
        for who in (patients, [str(i) for i in range(60)])
    )
    assert found["coverage"] == apart < mixed and "share no patient" in found["note"]


def test_halves_are_disjoint_by_patient_equal_and_seeded():
    patients = [f"p{min(i, 40) // 2}" for i in range(63)]  # one patient has 23 images
    first, second = split_halves(patients, seed=0)
    assert sorted(first + second) == list(range(63))
    assert not {patients[i] for i in first} & {patients[i] for i in second}
    assert abs(len(first) - len(second)) <= 23
    even = split_halves([str(i) for i in range(20)], seed=0)
    assert len(even[0]) == len(even[1]) == 10
    assert even != split_halves([str(i) for i in range(20)], seed=1)


def test_without_enough_patients_there_is_no_floor():
    report = QUALITY.report({"tiny": (normal(30, 0), normal(30, 1))}, ["one"] * 30)
    assert report["extractors"]["tiny"]["real_real_floor"] is None
    assert report["extractors"]["tiny"]["fake_at_floor_n"] is None
    table = markdown(report)
    assert "tiny: too few real images or patients" in table and "real half" not in table


def test_table_holds_every_comparison_and_is_plain_json():
    report = QUALITY.report({"a": (normal(40, 0), normal(40, 1)), "b": (normal(40, 2), normal(40, 3))})
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["settings"] == {"num_resamples": 12, "level": 0.95, "nearest_k": 3, "num_left_out": 3, "seed": 4}
    table = markdown(report)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * 3 and len({line.count("|") for line in lines}) == 1
    row = report["extractors"]["b"]
    assert f"| b | real, fake | 40, 40 | {row['fd']:.4g} [{row['fd_ci'][0]:.4g}, {row['fd_ci'][1]:.4g}] |" in table
    assert f"| b | real half, real half | 20, 20 | {row['real_real_floor']['fd']:.4g} |" in table
    assert table.count("share no image") == 1  # a note that holds for both stands once


def test_planted_outliers_are_found_and_the_distance_without_them_is_stable():
    """Three strange images among 300 make most of FD; what it is told without, and MMD, hardly notice them."""
    real, fake = normal(300, 0), normal(300, 1, 0.3)
    planted = fake.copy()
    planted[[7, 90, 211]] += 40 * np.eye(6)[[0, 3, 5]]
    clean, found = QUALITY.metrics(real, fake), QUALITY.metrics(real, planted)
    assert sorted(found["left_out"]) == [["fake", 7], ["fake", 90], ["fake", 211]]
    assert found["fd"] > 5 * clean["fd"]
    assert found["fd_without"] == pytest.approx(clean["fd"], rel=0.05)
    assert found["mmd"] == pytest.approx(clean["mmd"], rel=0.1)
    assert QUALITY.metrics(planted, real)["left_out"] == [["real", i] for _, i in found["left_out"]]


def test_impossible_requests_are_refused():
    for sizes, patients in (((5, 30), None), ((30, 30), ["p"] * 29)):
        with pytest.raises(SettingsError):
            QUALITY.compare(*(normal(size, 0) for size in sizes), patients)
    for options in ({"num_resamples": 1}, {"level": 95}, {"nearest_k": 0}, {"num_left_out": 0}, {"seed": -1}):
        with pytest.raises(SettingsError):
            ImageQuality(**options)
