"""Judges, their report, and the command in miniature."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from script_module import load_script
from tiny_benefit import CLASSES, labelled_folder, tiny_study
from tiny_bundles import generator_models

from common.data.transforms import load_square
from common.errors import SettingsError
from common.experiments.benefit_trials import VARIATION
from common.experiments.label_fidelity import ORIGINAL, Judge, LabelFidelity, markdown
from common.experiments.trials import QUICK_WARNING


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_dino):
    """A study whose generator is untrained: its variations cannot keep a label."""
    return tiny_study(tmp_path_factory.mktemp("fidelity"), tiny_dino, 8, 4, num_views=0)


def test_a_judge_knows_real_images_and_not_those_of_an_untrained_generator(study, tmp_path):
    found = LabelFidelity(study, tmp_path)(Judge("probe", 0))
    assert found["num_train"] == 24 and found["num_test"] == 12
    assert found[ORIGINAL]["auc"] > 0.9 and found[ORIGINAL]["same_verdict"] == 1.0
    assert found[VARIATION]["auc"] < found[ORIGINAL]["auc"] - 0.1 and found[VARIATION]["same_verdict"] < 0.9


def test_what_judges_are_shown_is_made_once_and_belongs_to_its_source(study, tmp_path):
    fidelity = LabelFidelity(study, tmp_path)
    reconstructions, variations = fidelity._reconstructions(), fidelity._variations()
    assert len(set(reconstructions)) == len(set(variations)) == len(study.test)
    made = {path: Image.open(path) for path in (*reconstructions, *variations)}
    assert all(image.text["Synthetic"] == "true" and image.size == (32, 32) for image in made.values())
    codec = study.pipe.codec
    with torch.no_grad():
        expected = codec.decode(codec.encode(load_square(study.test_paths[3], 32).as_subclass(torch.Tensor)[None]))
    assert np.array_equal(np.asarray(made[reconstructions[3]]), (expected[0, 0] * 255).round().numpy())
    stamps = [Path(path).stat().st_mtime_ns for path in reconstructions]
    assert fidelity._reconstructions() == reconstructions
    assert stamps == [Path(path).stat().st_mtime_ns for path in reconstructions]


def test_the_command_leaves_judges_table_and_plot_without_paths(tmp_path, tiny_dino):
    label_fidelity = load_script("label_fidelity").label_fidelity
    generator_models(tmp_path / "bundle", tiny_dino)
    labelled_folder(tmp_path / "data", 5, 2)
    options = {"output_dir": str(tmp_path / "out"), "work_dir": str(tmp_path / "work"), "device": "cpu"}
    options |= {"bundle_root": str(tmp_path / "bundle"), "quick": True, "amp": False, "batch_size": 4}
    label_fidelity(str(tmp_path / "data"), **options)
    report = json.loads((tmp_path / "out" / "label_fidelity.json").read_text())
    assert report["num_train"] == 12 and report["settings"]["num_test_images"] == 6
    assert report["settings"]["classes"] == sorted(CLASSES)
    text = (tmp_path / "out" / "label_fidelity.md").read_text()
    assert text == QUICK_WARNING + markdown(report) and text.count("\n| ") == 2 * 3 + 1
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {".trials.lock", *(f"label_fidelity.{end}" for end in ("csv", "json", "md", "png"))}
    before = (tmp_path / "out" / "label_fidelity.csv").read_text()
    assert before.count("\n") == 3 and str(tmp_path) not in before
    label_fidelity(str(tmp_path / "data"), **options)
    assert (tmp_path / "out" / "label_fidelity.csv").read_text() == before
    with pytest.raises(SettingsError):
        label_fidelity(str(tmp_path / "data"), **options, judges="probe")
