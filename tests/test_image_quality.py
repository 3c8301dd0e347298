"""The report on a pair of sets: its figures, its floor of two real halves, its table."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import draw_radiographs
from PIL import Image
from script_module import load_script

from common.errors import DatasetError, SettingsError, WeightsError
from common.evaluation.distribution_metrics import (
    bootstrap_interval,
    frechet_distance,
    frechet_distance_extrapolated,
    gaussian_mmd,
    precision_recall_density_coverage,
)
from common.evaluation.image_features import build_extractor
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


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    return load_script("image_quality")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_dino):
    """20 real images of 10 patients with a manifest, 12 fake ones, a small DINO encoder."""
    root = tmp_path_factory.mktemp("quality")
    draw_radiographs(root / "real" / "images", count=20, size=32)
    draw_radiographs(root / "fake", count=12, size=48)
    lines = [f"images/phantom_{i}.png,p{i // 2},{'val' if i < 18 else 'train'}" for i in range(20)]
    (root / "real" / "manifest.csv").write_text("\n".join(["image,patient_id,split", *lines]) + "\n")
    (root / "dino").symlink_to(tiny_dino)
    return root


def run(script, folder, output_dir, fake=None, **options):
    small = {"extractors": "dino", "dino_source": str(folder / "dino"), "num_resamples": 4, "image_size": 32}
    options = {**small, **options}
    script.image_quality(str(folder / "real"), str(fake or folder / "fake"), output_dir=str(output_dir), **options)
    return json.loads((output_dir / "quality.json").read_text())


def test_writes_report_table_and_plot(script, folder, tmp_path, capsys):
    report = run(script, folder, tmp_path, real_split="val", seed=3)
    found = report["extractors"]["dino"]
    assert (found["num_real"], found["num_fake"]) == (18, 12)
    assert "share no patient" in found["real_real_floor"]["note"]
    assert report["provenance"]["seed"] == report["settings"]["seed"] == 3
    assert {"command", "git", "real", "fake", "real_split", "extractors"} <= report["provenance"].keys()
    assert report["skipped"] == []
    table = (tmp_path / "quality.md").read_text()
    assert f"| dino | real, fake | 18, 12 | {found['fd']:.4g} " in table and table in capsys.readouterr().out
    with Image.open(tmp_path / "quality.png") as picture:
        assert len(picture.getcolors(10**6)) > 4  # bars of three colours, text and background
    assert {path.name for path in tmp_path.iterdir()} == {"quality.json", "quality.md", "quality.png", "features"}


def test_a_set_and_itself_are_at_zero_and_a_list_of_files_is_read(script, folder, tmp_path):
    names = [f"real/images/phantom_{i}.png" for i in range(20)]
    listed = folder / "listed.txt"
    listed.write_text("# the same images\n\n" + "\n".join(names) + "\n")
    found = run(script, folder, tmp_path, fake=listed)["extractors"]["dino"]
    assert found["num_fake"] == 20
    assert found["fd"] < 1e-6 < found["real_real_floor"]["fd"]
    assert found["precision"] == found["recall"] == found["coverage"] == 1


def test_without_any_weights_given_the_shipped_encoder_is_taken(script, folder, tmp_path):
    report = run(script, folder, tmp_path, extractors=None, dino_source=None)
    fingerprint = build_extractor("dino", None, script.SHIPPED_DINO).fingerprint
    assert report["provenance"]["extractors"] == {"dino": fingerprint}


def test_quick_takes_some_images_and_few_resamples(script, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "QUICK_IMAGES", 9)
    report = run(script, folder, tmp_path, quick=True)
    found = report["extractors"]["dino"]
    assert (found["num_real"], found["num_fake"]) == (9, 9)
    assert report["settings"]["num_resamples"] == script.QUICK_RESAMPLES and report["provenance"]["quick"] is True
    assert found["real_real_floor"] is None  # and the plot can do without


def test_unreadable_files_are_listed_and_the_rest_is_done(script, folder, tmp_path):
    draw_radiographs(tmp_path / "fake", count=10, size=32)
    (tmp_path / "fake" / "phantom_3.png").write_bytes(b"no image")
    with pytest.raises(DatasetError):
        run(script, folder, tmp_path / "out", fake=tmp_path / "fake")
    report = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert report["extractors"]["dino"]["num_fake"] == 9
    assert [entry["path"] for entry in report["skipped"]] == [str(tmp_path / "fake" / "phantom_3.png")]


def test_impossible_requests_leave_nothing(script, folder, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n")
    for options, error in [
        ({"fake": tmp_path / "none"}, DatasetError),
        ({"fake": empty}, DatasetError),
        ({"real_split": "test"}, DatasetError),
        ({"num_resamples": 1}, SettingsError),
        ({"extractors": "dino,inception"}, WeightsError),  # its weights were not given
    ]:
        with pytest.raises(error):
            run(script, folder, tmp_path / "out", **options)
    with pytest.raises(DatasetError):
        script.list_images(str(empty), "val")
    assert not (tmp_path / "out").exists()
