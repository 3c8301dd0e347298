"""The command, in miniature: both classifiers, stopped and continued, other settings refused."""

import json

import pytest
from script_module import load_script
from tiny_benefit import labelled_folder, write_manifest
from tiny_bundles import generator_models

from common.errors import DatasetError, SettingsError
from common.evaluation.report import read_rows
from common.experiments.benefit_study import labelled_split
from common.experiments.benefit_subsets import SubsetError


@pytest.fixture(scope="module")
def script():
    return load_script("synthetic_benefit")


@pytest.fixture(scope="module")
def done(script, tmp_path_factory, tiny_dino):
    """A finished quick run, its bundle and its data."""
    root = tmp_path_factory.mktemp("benefit")
    generator_models(root / "bundle", tiny_dino)
    labelled_folder(root / "data", 8, 2)
    run(script, root, root / "out")
    return root


def run(script, root, out, **changed):
    options = {"strategies": ["variation"], "regimes": ["real", "mixed"], "image_size": 32}
    options |= {"where": {"source": "clinic"}, "quick": True, "amp": False, "device": "cpu", "batch_size": 4}
    options |= {"work_dir": str(root / "work"), "bundle_root": str(root / "bundle"), "num_views": 1}
    script.synthetic_benefit(str(root / "data"), output_dir=str(out), **{**options, **changed})


def trials_of(folder):
    rows = [{**row, "date": ""} for row in read_rows(folder / "synthetic_benefit.csv")]
    return sorted(rows, key=lambda row: (row["classifier"], row["regime"]))


def test_a_run_leaves_trials_table_and_plots_without_paths_or_images(done):
    out = done / "out"
    assert len(trials_of(out)) == 2 * 2
    assert "--quick" in (out / "synthetic_benefit.md").read_text()
    written = [path for path in out.rglob("*") if path.is_file()]
    assert {path.suffix for path in written} == {".csv", ".json", ".md", ".png", ".lock"}
    for path in written:
        if path.suffix != ".png" and path.name != "synthetic_benefit.json":  # which has the command
            assert str(done) not in path.read_text()
    settings = json.loads((out / "settings.json").read_text())
    assert settings["num_test_images"] == 6 and settings["training"]["num_steps"] == 2


def test_stopped_and_continued_is_as_never_stopped(done, script, tmp_path):
    expected = trials_of(done / "out")
    run(script, done, tmp_path / "out", share=[0, 2], work_dir=str(tmp_path / "work"))
    assert len(trials_of(tmp_path / "out")) == 2
    for path in list((tmp_path / "work" / "pool").rglob("*.png"))[::3]:
        path.unlink()
    run(script, done, tmp_path / "out", work_dir=str(tmp_path / "work"))
    assert trials_of(tmp_path / "out") == expected


def test_images_can_be_made_before_all_else(done, script, tmp_path):
    run(script, done, tmp_path / "out", generate_only=True, work_dir=str(tmp_path / "work"))
    made = {path.name for path in (tmp_path / "work" / "pool").rglob("*.png")}
    assert made == {path.name for path in (done / "work" / "pool").rglob("*.png")}
    assert not (tmp_path / "out").exists()


def test_wrong_knobs_are_refused_before_anything_is_done(done, script, tmp_path):
    wrong = (
        {"strategies": "prior"},
        {"regimes": ["both"]},
        {"ratios": 5, "quick": False},
        {"sizes": [0], "quick": False},
    )
    for changed in wrong:
        with pytest.raises(SettingsError):
            run(script, done, tmp_path / "out", **changed)
    with pytest.raises(SettingsError):
        run(script, done, done / "out", learning_rate=0.1)
    assert not (tmp_path / "out").exists()


def test_a_patient_or_a_file_in_both_splits_is_refused(tmp_path):
    folder = labelled_folder(tmp_path / "data", 2, 1)
    rows = [line.split(",") for line in (folder / "manifest.csv").read_text().split()]
    items = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    train, test = (next(item for item in items if item["split"] == split) for split in ("train", "val"))
    write_manifest(folder, [{**item, "patient_id": train["patient_id"]} if item is test else item for item in items])
    with pytest.raises(DatasetError, match="more than one split"):
        labelled_split(str(folder), None)
    write_manifest(folder, items)
    (folder / test["image"]).write_bytes((folder / train["image"]).read_bytes())
    with pytest.raises(SubsetError, match="1 files are in train and in val"):
        labelled_split(str(folder), None)
